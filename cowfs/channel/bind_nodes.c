/*
 * bind_nodes.c - what backs the opens of each node: nodes.h
 */
#include "bind_nodes.h"

#include <unistd.h>

#include "bind.h"
#include "life.h"
#include "nodes.h"
#include "touch.h"

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
	struct node_opens state;
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
		knows = ch->dev_fd >= 0 && nodes_kernel_knows(&ch->nodes, nodeid);
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

const PyMethodDef node_methods[] = {
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
	{NULL, NULL, 0, NULL},
};
