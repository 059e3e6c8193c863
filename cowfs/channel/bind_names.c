/*
 * bind_names.c - what the channel, or the kernel, knows of names and attributes: primed LOOKUPs, files
 * whose mode and owner the channel changes, and what the kernel is to forget
 */
#include "bind_names.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "bind.h"
#include "kept_times.h"
#include "kernel.h"
#include "life.h"
#include "primed.h"
#include "replies.h"
#include "touch.h"

/* ---- primed names ------------------------------------------------------------------------------- */

/* Appends an item that Py_BuildValue has made. 0, or -1 with an exception. */
static int append(PyObject *list, PyObject *item)
{
	int err = item ? PyList_Append(list, item) : -1;

	Py_XDECREF(item);
	return err;
}

/* Appends (name, ino) to list if the name could be primed, and the node whose answer was given up for it to
 * evicted. 0, or -1 with an exception. */
static int prime_one(struct channel *ch, uint64_t parent, int dir_fd, PyObject *name,
		     PyObject *list, PyObject *evicted)
{
	struct fuse_entry_out entry;
	struct stat st;
	uint64_t given_up;
	char *bytes;
	Py_ssize_t len;

	if (PyBytes_AsStringAndSize(name, &bytes, &len) < 0)
		return -1;
	if (fstatat(dir_fd, bytes, &st, AT_SYMLINK_NOFOLLOW) < 0 || S_ISDIR(st.st_mode) ||
	    st.st_nlink != 1 || shown_ino(ch, st.st_ino) != st.st_ino ||
	    touch_is_offered(&ch->touch, st.st_ino)) /* its attributes may change at any time */
		return 0;
	primed_describe(&entry, &st);
	if (!primed_add(&ch->primed, parent, bytes, (size_t)len, &entry, &given_up))
		return 0;
	if (given_up && append(evicted, PyLong_FromUnsignedLongLong(given_up)))
		return -1;
	return append(list, Py_BuildValue("OK", name, (unsigned long long)st.st_ino));
}

static PyObject *Channel_prime(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t parent;
	int dir_fd;
	PyObject *names;
	PyObject *primed, *evicted;
	int err = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&iO!:prime", to_u64, &parent, &dir_fd, &PyList_Type,
				     &names))
		return NULL;
	primed = PyList_New(0);
	evicted = PyList_New(0);
	err = primed && evicted ? 0 : -1;
	/* The GIL is kept: nobody may ask Python about a node before it has entered it. */
	if (!err && channel_enter(ch)) {
		lock_touch(ch);
		for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names) && !err; i++)
			err = prime_one(ch, parent, dir_fd, PyList_GET_ITEM(names, i), primed,
					evicted);
		pthread_mutex_unlock(&ch->touch.lock);
		channel_leave(ch);
	}
	if (!err)
		return Py_BuildValue("NN", primed, evicted);
	Py_XDECREF(primed);
	Py_XDECREF(evicted);
	return NULL;
}

static PyObject *Channel_unprime(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	struct fuse_entry_out entry;
	uint64_t parent;
	const char *name;
	Py_ssize_t len;
	bool taken = false;

	if (!ch || !PyArg_ParseTuple(args, "O&y#:unprime", to_u64, &parent, &name, &len))
		return NULL;
	if (channel_enter(ch)) {
		taken = primed_take(&ch->primed, parent, name, (size_t)len, &entry);
		channel_leave(ch);
	}
	return PyBool_FromLong(taken);
}

/* ---- changes of mode and owner ------------------------------------------------------------------- */

static PyObject *Channel_offer(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	struct touch_offer offer;
	Py_ssize_t listing_len;
	int count = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&iiiyy#:offer", to_u64, &offer.nodeid, &offer.upper_fd,
				     &offer.tree_fd, &offer.work_fd, &offer.path, &offer.listing,
				     &listing_len))
		return NULL;
	offer.listing_len = (size_t)listing_len;
	if (channel_enter(ch)) {
		lock_touch(ch);
		count = touch_offer(&ch->touch, &offer);
		pthread_mutex_unlock(&ch->touch.lock);
		channel_leave(ch);
	}
	return count < 0 ? os_error(count) : PyLong_FromLong(count);
}

static PyObject *Channel_withdraw(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;

	if (!ch || !PyArg_ParseTuple(args, "O&:withdraw", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		lock_touch(ch);
		touch_withdraw(&ch->touch, nodeid);
		pthread_mutex_unlock(&ch->touch.lock);
		channel_leave(ch);
	}
	Py_RETURN_NONE;
}

static PyObject *Channel_take_touched(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);
	struct touched *touched;
	uint32_t count = 0;
	PyObject *list;

	(void)unused;
	if (!ch)
		return NULL;
	touched = touch_take(&ch->touch, &count);
	if (!touched)
		Py_RETURN_NONE;
	list = PyList_New(count);
	for (uint32_t i = 0; list && i < count; i++) {
		PyObject *one = Py_BuildValue("KO", (unsigned long long)touched[i].nodeid,
					      touched[i].unprimed ? Py_True : Py_False);
		if (one)
			PyList_SET_ITEM(list, i, one);
		else
			Py_CLEAR(list);
	}
	free(touched);
	return list;
}

static PyObject *Channel_hold_touches(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);

	(void)unused;
	if (!ch)
		return NULL;
	lock_touch(ch);
	Py_RETURN_NONE;
}

static PyObject *Channel_drop_idle_clones(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);

	(void)unused;
	if (!ch)
		return NULL;
	if (channel_enter(ch)) {
		stock_drop_idle(&ch->touch.stock);
		channel_leave(ch);
	}
	Py_RETURN_NONE;
}

static PyObject *Channel_let_touches(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);

	(void)unused;
	if (!ch)
		return NULL;
	pthread_mutex_unlock(&ch->touch.lock);
	Py_RETURN_NONE;
}

/* Python holds the touches meanwhile, hence the lock; so the ledger is one's own. */
static PyObject *Channel_keep_times(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	int directory;

	if (!ch || !PyArg_ParseTuple(args, "i:keep_times", &directory))
		return NULL;
	return none_or_error(kept_times_begin(ch->ledger, directory));
}

static PyObject *Channel_set_times_back(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	int directory;

	if (!ch || !PyArg_ParseTuple(args, "i:set_times_back", &directory))
		return NULL;
	kept_times_end(ch->ledger, directory);
	Py_RETURN_NONE;
}

/* ---- notifications ------------------------------------------------------------------------------ */

static PyObject *Channel_invalidate_entry(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t parent;
	const char *name;
	Py_ssize_t len;
	int err = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&y#:invalidate_entry", to_u64, &parent, &name, &len))
		return NULL;
	if (channel_enter(ch)) {
		err = notify_inval_entry(ch, parent, name, (size_t)len);
		channel_leave(ch);
	}
	return none_or_error(err);
}

static PyObject *invalidate(PyObject *self, PyObject *args,
			    int (*notify)(struct channel *, uint64_t))
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	int err = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&", to_u64, &nodeid))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	if (channel_enter(ch)) {
		/* not mounted, or unmounted already: nothing is cached */
		if (ch->dev_fd >= 0)
			err = notify(ch, nodeid);
		if (err == -ENODEV || err == -ENOTCONN || err == -EPERM)
			err = 0;
		channel_leave(ch);
	}
	Py_END_ALLOW_THREADS
	return none_or_error(err);
}

static PyObject *Channel_invalidate_attr(PyObject *self, PyObject *args)
{
	return invalidate(self, args, notify_inval_attr);
}

static PyObject *Channel_invalidate_listing(PyObject *self, PyObject *args)
{
	return invalidate(self, args, notify_inval_data);
}

const PyMethodDef name_methods[] = {
	{"prime", Channel_prime, METH_VARARGS, NULL},
	{"unprime", Channel_unprime, METH_VARARGS, NULL},
	{"offer", Channel_offer, METH_VARARGS, NULL},
	{"withdraw", Channel_withdraw, METH_VARARGS, NULL},
	{"take_touched", Channel_take_touched, METH_NOARGS, NULL},
	{"hold_touches", Channel_hold_touches, METH_NOARGS, NULL},
	{"let_touches", Channel_let_touches, METH_NOARGS, NULL},
	{"keep_times", Channel_keep_times, METH_VARARGS, NULL},
	{"set_times_back", Channel_set_times_back, METH_VARARGS, NULL},
	{"drop_idle_clones", Channel_drop_idle_clones, METH_NOARGS, NULL},
	{"invalidate_entry", Channel_invalidate_entry, METH_VARARGS, NULL},
	{"invalidate_attr", Channel_invalidate_attr, METH_VARARGS, NULL},
	{"invalidate_listing", Channel_invalidate_listing, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};
