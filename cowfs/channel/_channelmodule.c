/*
 * _channelmodule.c - the channel's Python face (_channel.pyi says what each call promises)
 *
 * Knows Python objects and struct channel, and no protocol. Errors of the core, negative errno
 * values, become OSError here.
 *
 * The GIL: released in mount(), start(), close() and the two invalidations that are sent at once,
 * which may wait. Kept in all others, which take a mutex for a few instructions and never wait:
 * giving the GIL up and getting it back costs more than they do, and up to a whole switch interval
 * when a thread computes. touch.lock may be held over system calls of another thread: it is waited for
 * without the GIL, if it is not free.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "attr.h"
#include "channel.h"
#include "words.h"

struct channel_object {
	PyObject_HEAD
	struct channel *ch;
};

/* ---- helpers ----------------------------------------------------------------------------------- */

static PyObject *os_error(int negative_errno)
{
	errno = -negative_errno;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *none_or_error(int err)
{
	if (err < 0)
		return os_error(err);
	Py_RETURN_NONE;
}

/* O& converter: an int from 0 to 2**64 - 1. */
static int to_u64(PyObject *value, void *out)
{
	unsigned long long n = PyLong_AsUnsignedLongLong(value);
	if (n == (unsigned long long)-1 && PyErr_Occurred())
		return 0;
	*(uint64_t *)out = n;
	return 1;
}

/* The channel of an object, or NULL with an exception when __init__ has not run. */
static struct channel *channel_of(PyObject *self)
{
	struct channel *ch = ((struct channel_object *)self)->ch;
	if (!ch)
		PyErr_SetString(PyExc_ValueError, "Channel.__init__ has not been called");
	return ch;
}

static void lock_touch(struct channel *ch)
{
	if (pthread_mutex_trylock(&ch->touch.lock) == 0)
		return;
	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&ch->touch.lock);
	Py_END_ALLOW_THREADS
}

/* ---- life --------------------------------------------------------------------------------------- */

static int Channel_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"passthrough", "root_ino", "max_kept", "ledger_fd",
				 "private_mount_fd", NULL};
	struct channel_object *me = (struct channel_object *)self;
	int passthrough = -1;
	uint64_t root_ino = 0;
	unsigned int max_kept = 16384;
	int ledger_fd = -1;
	int private_mount_fd = -1;

	/* '$' cannot stand without '|' before it, so "required" is checked by hand. */
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$pO&Iii:Channel", names, &passthrough,
					 to_u64, &root_ino, &max_kept, &ledger_fd,
					 &private_mount_fd))
		return -1;
	if (passthrough < 0 || root_ino == 0) {
		PyErr_SetString(PyExc_TypeError, "Channel() needs passthrough and root_ino");
		return -1;
	}
	if (me->ch) {
		PyErr_SetString(PyExc_ValueError, "a Channel is initialised once");
		return -1;
	}
	me->ch = channel_new(passthrough, root_ino, max_kept, &kernel_backing_ops,
			     ledger_fd);
	if (!me->ch) {
		PyErr_SetFromErrno(PyExc_OSError);
		if (private_mount_fd >= 0)
			close(private_mount_fd);
		return -1;
	}
	me->ch->nodes.private_mount_fd = private_mount_fd;
	return 0;
}

static void Channel_dealloc(PyObject *self)
{
	struct channel_object *me = (struct channel_object *)self;
	PyTypeObject *type = Py_TYPE(self);

	if (me->ch) {
		Py_BEGIN_ALLOW_THREADS
		channel_free(me->ch);
		Py_END_ALLOW_THREADS
	}
	type->tp_free(self);
	Py_DECREF(type);
}

static PyObject *Channel_mount(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	const char *source, *mountpoint, *options;
	unsigned long flags;
	int err = -EBADF;

	if (!ch || !PyArg_ParseTuple(args, "yyky:mount", &source, &mountpoint, &flags, &options))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	if (channel_enter(ch)) {
		err = channel_mount(ch, source, mountpoint, flags, options);
		channel_leave(ch);
	}
	Py_END_ALLOW_THREADS
	return none_or_error(err);
}

static PyObject *Channel_start(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);
	int err = -EBADF;

	(void)unused;
	if (!ch)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	if (channel_enter(ch)) {
		err = channel_start(ch);
		channel_leave(ch);
	}
	Py_END_ALLOW_THREADS
	return none_or_error(err);
}

static PyObject *Channel_resume(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	int dev_fd, volume_fd;
	int err = -EBADF;

	if (!ch || !PyArg_ParseTuple(args, "ii:resume", &dev_fd, &volume_fd))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	if (channel_enter(ch)) {
		err = channel_resume(ch, dev_fd, volume_fd);
		channel_leave(ch);
	} else {
		close(dev_fd);
	}
	Py_END_ALLOW_THREADS
	return err < 0 ? os_error(err) : PyLong_FromLong(err);
}

static PyObject *Channel_close(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);

	(void)unused;
	if (!ch)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	channel_close(ch);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *Channel_drain(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);
	int drained = 0;

	(void)unused;
	if (!ch)
		return NULL;
	if (channel_enter(ch)) {
		drained = channel_drain(ch);
		channel_leave(ch);
	}
	return PyLong_FromLong(drained);
}

/* ---- nodes -------------------------------------------------------------------------------------- */

static PyObject *Channel_open(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	int writing;
	unsigned int uid = 0;
	int backed = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&p|I:open", to_u64, &nodeid, &writing, &uid))
		return NULL;
	if (channel_enter(ch)) {
		backed = nodes_open(&ch->nodes, nodeid, writing, uid);
		channel_leave(ch);
	}
	return backed < 0 ? os_error(backed) : PyBool_FromLong(backed);
}

static PyObject *Channel_unopen(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	int writing;

	if (!ch || !PyArg_ParseTuple(args, "O&p:unopen", to_u64, &nodeid, &writing))
		return NULL;
	if (channel_enter(ch)) {
		nodes_unopen(&ch->nodes, nodeid, writing);
		channel_leave(ch);
	}
	Py_RETURN_NONE;
}

static PyObject *Channel_attach(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	int fd, kind, reading, writing;
	unsigned int uid = 0;
	int err = -EBADF;

	if (!ch || !PyArg_ParseTuple(args, "O&iiip|I:attach", to_u64, &nodeid, &fd, &kind, &reading,
				     &writing, &uid))
		return NULL;
	if (kind != NODE_SHARED && kind != NODE_PRIVATE) {
		close(fd);
		return PyErr_Format(PyExc_ValueError, "kind is SHARED or PRIVATE, not %d", kind);
	}
	if (reading < READ_CACHED || reading > READ_BYPASS) {
		close(fd);
		return PyErr_Format(PyExc_ValueError, "reading is no READ_*: %d", reading);
	}
	if (channel_enter(ch)) {
		err = nodes_attach(&ch->nodes, nodeid, fd, (enum node_kind)kind,
				   (enum node_reading)reading, writing, uid);
		channel_leave(ch);
	} else {
		close(fd);
	}
	return none_or_error(err);
}

static PyObject *Channel_require_room(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	unsigned int uid;
	int err = 0;

	if (!ch || !PyArg_ParseTuple(args, "I:require_room", &uid))
		return NULL;
	if (channel_enter(ch)) {
		err = nodes_have_room(&ch->nodes, uid) ? 0 : -ENFILE;
		channel_leave(ch);
	}
	return none_or_error(err);
}

static PyObject *Channel_is_scarce(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);
	bool scarce = false;

	(void)unused;
	if (!ch)
		return NULL;
	if (channel_enter(ch)) {
		scarce = nodes_scarce(&ch->nodes);
		channel_leave(ch);
	}
	return PyBool_FromLong(scarce);
}

static PyObject *Channel_hold(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	unsigned int uid;
	int err = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&I:hold", to_u64, &nodeid, &uid))
		return NULL;
	if (channel_enter(ch)) {
		err = nodes_hold(&ch->nodes, nodeid, uid);
		channel_leave(ch);
	}
	return none_or_error(err);
}

static PyObject *Channel_let(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;

	if (!ch || !PyArg_ParseTuple(args, "O&:let", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		nodes_let(&ch->nodes, nodeid);
		channel_leave(ch);
	}
	Py_RETURN_NONE;
}

static PyObject *Channel_switch(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	int fd;
	int done = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&i:switch", to_u64, &nodeid, &fd))
		return NULL;
	if (channel_enter(ch)) {
		done = nodes_switch(&ch->nodes, nodeid, fd);
		channel_leave(ch);
	}
	if (done < 0)
		return os_error(done);
	return PyBool_FromLong(done);
}

static PyObject *Channel_revoke(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	struct node_state state;
	bool open = false;

	if (!ch || !PyArg_ParseTuple(args, "O&:revoke", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		open = nodes_revoke(&ch->nodes, nodeid, &state);
		channel_leave(ch);
	}
	if (!open)
		Py_RETURN_NONE;
	return Py_BuildValue("iIIO", (int)state.kind, (unsigned int)state.readers,
			     (unsigned int)state.writers,
			     state.passthrough ? Py_True : Py_False);
}

static PyObject *Channel_writers(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	uint32_t writers = 0;

	if (!ch || !PyArg_ParseTuple(args, "O&:writers", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		writers = nodes_writers(&ch->nodes, nodeid);
		channel_leave(ch);
	}
	return PyLong_FromUnsignedLong(writers);
}

static PyObject *Channel_is_volatile(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	bool changes = false;

	if (!ch || !PyArg_ParseTuple(args, "O&:is_volatile", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		changes = nodes_is_volatile(&ch->nodes, nodeid);
		channel_leave(ch);
	}
	return PyBool_FromLong(changes);
}

static PyObject *Channel_is_shared(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	bool shared = false;

	if (!ch || !PyArg_ParseTuple(args, "O&:is_shared", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		shared = nodes_is_shared(&ch->nodes, nodeid);
		channel_leave(ch);
	}
	return PyBool_FromLong(shared);
}

static PyObject *Channel_mark_mappable(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;

	if (!ch || !PyArg_ParseTuple(args, "O&:mark_mappable", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		nodes_mark_mappable(&ch->nodes, nodeid);
		channel_leave(ch);
	}
	Py_RETURN_NONE;
}

static PyObject *Channel_backing_fd(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	int fd = -EBADF;

	if (!ch || !PyArg_ParseTuple(args, "O&:backing_fd", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		fd = nodes_backing_fd(&ch->nodes, nodeid);
		channel_leave(ch);
	}
	return fd < 0 ? os_error(fd) : PyLong_FromLong(fd);
}

static PyObject *Channel_knows(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;
	bool knows = false;

	if (!ch || !PyArg_ParseTuple(args, "O&:knows", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		knows = ch->dev_fd >= 0 && ch->nodes.ops->knows(ch->dev_fd, nodeid);
		channel_leave(ch);
	}
	return PyBool_FromLong(knows);
}

static PyObject *Channel_forget(PyObject *self, PyObject *args)
{
	struct channel *ch = channel_of(self);
	uint64_t nodeid;

	if (!ch || !PyArg_ParseTuple(args, "O&:forget", to_u64, &nodeid))
		return NULL;
	if (channel_enter(ch)) {
		lock_touch(ch);
		touch_withdraw(&ch->touch, nodeid);
		pthread_mutex_unlock(&ch->touch.lock);
		nodes_forget(&ch->nodes, nodeid);
		channel_leave(ch);
	}
	Py_RETURN_NONE;
}

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

static PyObject *Channel_let_touches(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);

	(void)unused;
	if (!ch)
		return NULL;
	pthread_mutex_unlock(&ch->touch.lock);
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

/* ---- what can be asked -------------------------------------------------------------------------- */

static PyObject *Channel_counters(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);
	PyObject *all;

	(void)unused;
	if (!ch)
		return NULL;
	all = PyDict_New();
	if (!all)
		return NULL;
	for (uint32_t i = 0; i < OPCODES; i++) {
		struct counter *k = &ch->counters->by_opcode[i];
		PyObject *one;

		if (atomic_load(&k->count) == 0)
			continue;
		one = Py_BuildValue("{sK sK sK sK sK}",
				    "count", (unsigned long long)atomic_load(&k->count),
				    "errors", (unsigned long long)atomic_load(&k->errors),
				    "answered_here",
				    (unsigned long long)atomic_load(&k->answered_here),
				    "total_ns", (unsigned long long)atomic_load(&k->total_ns),
				    "max_ns", (unsigned long long)atomic_load(&k->max_ns));
		if (!one || PyDict_SetItemString(all, opcode_info(i)->name, one) < 0) {
			Py_XDECREF(one);
			Py_DECREF(all);
			return NULL;
		}
		Py_DECREF(one);
	}
	return all;
}

static PyObject *Channel_oldest(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);
	uint64_t age = 0;

	(void)unused;
	if (!ch)
		return NULL;
	if (channel_enter(ch)) {
		age = channel_oldest(ch);
		channel_leave(ch);
	}
	return PyFloat_FromDouble((double)age / 1e9);
}

static PyObject *check_ledger(PyObject *module, PyObject *args)
{
	int fd;

	(void)module;
	if (!PyArg_ParseTuple(args, "i:check_ledger", &fd))
		return NULL;
	return none_or_error(ledger_check(fd));
}

static PyObject *lost_privileges_of(PyObject *module, PyObject *args)
{
	unsigned int mode;
	int in_group;

	(void)module;
	if (!PyArg_ParseTuple(args, "Ip:lost_privileges", &mode, &in_group))
		return NULL;
	return PyLong_FromUnsignedLong(lost_privileges(mode, in_group));
}

static PyObject *Channel_get_ledger_fd(PyObject *self, void *closure)
{
	struct channel *ch = channel_of(self);
	(void)closure;
	return ch ? PyLong_FromLong(ch->ledger->fd) : NULL;
}

static PyObject *Channel_get_dev_fd(PyObject *self, void *closure)
{
	struct channel *ch = channel_of(self);
	(void)closure;
	return ch ? PyLong_FromLong(ch->dev_fd) : NULL;
}

static PyObject *Channel_get_daemon_fd(PyObject *self, void *closure)
{
	struct channel *ch = channel_of(self);
	(void)closure;
	return ch ? PyLong_FromLong(ch->daemon_fd) : NULL;
}

static PyObject *Channel_get_closed_fd(PyObject *self, void *closure)
{
	struct channel *ch = channel_of(self);
	(void)closure;
	return ch ? PyLong_FromLong(ch->closed_fd) : NULL;
}

static PyObject *Channel_get_read_error(PyObject *self, void *closure)
{
	struct channel *ch = channel_of(self);
	(void)closure;
	return ch ? PyLong_FromLong(atomic_load(&ch->read_error)) : NULL;
}

static PyObject *Channel_get_resends(PyObject *self, void *closure)
{
	struct channel *ch = channel_of(self);
	(void)closure;
	return ch ? PyBool_FromLong(ch->resends) : NULL;
}

static PyObject *Channel_get_passthrough(PyObject *self, void *closure)
{
	struct channel *ch = channel_of(self);
	(void)closure;
	return ch ? PyBool_FromLong(ch->passthrough) : NULL;
}

static PyObject *Channel_get_max_stack_depth(PyObject *self, void *closure)
{
	(void)self;
	(void)closure;
	return PyLong_FromLong(1); /* as handshake.c tells the kernel */
}

/* ---- the module ---------------------------------------------------------------------------------- */

static PyMethodDef channel_methods[] = {
	{"mount", Channel_mount, METH_VARARGS, NULL},
	{"start", Channel_start, METH_NOARGS, NULL},
	{"resume", Channel_resume, METH_VARARGS, NULL},
	{"drain", Channel_drain, METH_NOARGS, NULL},
	{"open", Channel_open, METH_VARARGS, NULL},
	{"unopen", Channel_unopen, METH_VARARGS, NULL},
	{"attach", Channel_attach, METH_VARARGS, NULL},
	{"require_room", Channel_require_room, METH_VARARGS, NULL},
	{"is_scarce", Channel_is_scarce, METH_NOARGS, NULL},
	{"hold", Channel_hold, METH_VARARGS, NULL},
	{"let", Channel_let, METH_VARARGS, NULL},
	{"switch", Channel_switch, METH_VARARGS, NULL},
	{"revoke", Channel_revoke, METH_VARARGS, NULL},
	{"writers", Channel_writers, METH_VARARGS, NULL},
	{"is_volatile", Channel_is_volatile, METH_VARARGS, NULL},
	{"is_shared", Channel_is_shared, METH_VARARGS, NULL},
	{"mark_mappable", Channel_mark_mappable, METH_VARARGS, NULL},
	{"backing_fd", Channel_backing_fd, METH_VARARGS, NULL},
	{"knows", Channel_knows, METH_VARARGS, NULL},
	{"forget", Channel_forget, METH_VARARGS, NULL},
	{"prime", Channel_prime, METH_VARARGS, NULL},
	{"unprime", Channel_unprime, METH_VARARGS, NULL},
	{"offer", Channel_offer, METH_VARARGS, NULL},
	{"withdraw", Channel_withdraw, METH_VARARGS, NULL},
	{"take_touched", Channel_take_touched, METH_NOARGS, NULL},
	{"hold_touches", Channel_hold_touches, METH_NOARGS, NULL},
	{"let_touches", Channel_let_touches, METH_NOARGS, NULL},
	{"invalidate_entry", Channel_invalidate_entry, METH_VARARGS, NULL},
	{"invalidate_attr", Channel_invalidate_attr, METH_VARARGS, NULL},
	{"invalidate_listing", Channel_invalidate_listing, METH_VARARGS, NULL},
	{"counters", Channel_counters, METH_NOARGS, NULL},
	{"oldest", Channel_oldest, METH_NOARGS, NULL},
	{"close", Channel_close, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef channel_getset[] = {
	{"daemon_fd", Channel_get_daemon_fd, NULL, NULL, NULL},
	{"closed_fd", Channel_get_closed_fd, NULL, NULL, NULL},
	{"read_error", Channel_get_read_error, NULL, NULL, NULL},
	{"dev_fd", Channel_get_dev_fd, NULL, NULL, NULL},
	{"ledger_fd", Channel_get_ledger_fd, NULL, NULL, NULL},
	{"passthrough", Channel_get_passthrough, NULL, NULL, NULL},
	{"resends", Channel_get_resends, NULL, NULL, NULL},
	{"max_stack_depth", Channel_get_max_stack_depth, NULL, NULL, NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot channel_slots[] = {
	{Py_tp_doc, (void *)"The native end of one mount; see cowfs/channel/_channel.pyi."},
	{Py_tp_init, (void *)Channel_init},
	{Py_tp_dealloc, (void *)Channel_dealloc},
	{Py_tp_methods, channel_methods},
	{Py_tp_getset, channel_getset},
	{0, NULL},
};

static PyType_Spec channel_spec = {
	.name = "cowfs.channel._channel.Channel",
	.basicsize = sizeof(struct channel_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = channel_slots,
};

static const struct {
	const char *name, *word;
} words[] = {
	{"UNNAMED", WORD_UNNAMED},
	{"TAKES_SETGID", WORD_TAKES_SETGID},
	{"STATX", WORD_STATX},
	{"AGAIN", WORD_AGAIN},
	{"ATTRIBUTE_AGAIN", WORD_ATTRIBUTE_AGAIN},
	{"EXCHANGE_NUMBER", WORD_EXCHANGE},
};

static int add_bytes(PyObject *module, const char *name, const char *word)
{
	PyObject *bytes = PyBytes_FromString(word);
	int err = bytes ? PyModule_AddObjectRef(module, name, bytes) : -1;

	Py_XDECREF(bytes);
	return err;
}

static int module_exec(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&channel_spec);

	if (!type)
		return -1;
	if (PyModule_AddObject(module, "Channel", type) < 0) {
		Py_DECREF(type);
		return -1;
	}
	if (PyModule_AddIntConstant(module, "SHARED", NODE_SHARED) < 0 ||
	    PyModule_AddIntConstant(module, "PRIVATE", NODE_PRIVATE) < 0 ||
	    PyModule_AddIntConstant(module, "CACHED", READ_CACHED) < 0 ||
	    PyModule_AddIntConstant(module, "PASSTHROUGH", READ_PASSTHROUGH) < 0 ||
	    PyModule_AddIntConstant(module, "BYPASS", READ_BYPASS) < 0 ||
	    PyModule_AddIntConstant(module, "FOREVER", FOREVER_S) < 0)
		return -1;
	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (add_bytes(module, words[i].name, words[i].word) < 0)
			return -1;
	return 0;
}

static PyMethodDef module_methods[] = {
	{"check_ledger", check_ledger, METH_VARARGS, NULL},
	{"lost_privileges", lost_privileges_of, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, (void *)module_exec},
	{0, NULL},
};

static struct PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_channel",
	.m_methods = module_methods,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__channel(void)
{
	return PyModuleDef_Init(&module_def);
}
