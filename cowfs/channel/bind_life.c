/*
 * bind_life.c - a Channel from its making to its end, and what can be asked of it meanwhile
 */
#include "bind_life.h"

#include <unistd.h>

#include "bind.h"
#include "bind_counts.h"
#include "handshake.h"
#include "life.h"
#include "replies.h"

/* ---- life --------------------------------------------------------------------------------------- */

int bind_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"passthrough", "root_ino", "max_cached", "ledger_fd",
				 "private_mount_fd", NULL};
	struct channel_object *me = (struct channel_object *)self;
	int passthrough = -1;
	uint64_t root_ino = 0;
	unsigned int max_cached = 16384;
	int ledger_fd = -1;
	int private_mount_fd = -1;

	/* '$' cannot stand without '|' before it, so "required" is checked by hand. */
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$pO&Iii:Channel", names, &passthrough,
					 to_u64, &root_ino, &max_cached, &ledger_fd,
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
	me->ch = channel_new(passthrough, root_ino, max_cached, &kernel_backing_ops,
			     ledger_fd);
	if (!me->ch) {
		PyErr_SetFromErrno(PyExc_OSError);
		if (private_mount_fd >= 0)
			close(private_mount_fd);
		return -1;
	}
	me->ch->nodes.device.private_mount_fd = private_mount_fd;
	return 0;
}

void bind_dealloc(PyObject *self)
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

/* ---- what can be asked -------------------------------------------------------------------------- */

static PyObject *Channel_counters(PyObject *self, PyObject *unused)
{
	struct channel *ch = channel_of(self);

	(void)unused;
	return ch ? counters_as_dict(ch->counters) : NULL;
}

static PyObject *Channel_count_copy_up(PyObject *self, PyObject *took)
{
	struct channel *ch = channel_of(self);
	uint64_t took_ns;

	if (!ch || !to_u64(took, &took_ns))
		return NULL;
	tally_add(ch->tally, TALLY_COPY_UPS, 1);
	tally_clone(ch->tally, took_ns);
	Py_RETURN_NONE;
}

static PyObject *Channel_note_nodes(PyObject *self, PyObject *count)
{
	struct channel *ch = channel_of(self);
	uint64_t nodes;

	if (!ch || !to_u64(count, &nodes))
		return NULL;
	tally_set(ch->tally, TALLY_NODES, nodes);
	Py_RETURN_NONE;
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
	return PyLong_FromLong(1); /* as agreement.c has it */
}

const PyMethodDef life_methods[] = {
	{"mount", Channel_mount, METH_VARARGS, NULL},
	{"start", Channel_start, METH_NOARGS, NULL},
	{"resume", Channel_resume, METH_VARARGS, NULL},
	{"close", Channel_close, METH_NOARGS, NULL},
	{"drain", Channel_drain, METH_NOARGS, NULL},
	{"counters", Channel_counters, METH_NOARGS, NULL},
	{"count_copy_up", Channel_count_copy_up, METH_O, NULL},
	{"note_nodes", Channel_note_nodes, METH_O, NULL},
	{"oldest", Channel_oldest, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

PyGetSetDef life_getset[] = {
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
