/*
 * bind.h - what every file of the channel's Python face needs
 */
#ifndef COWFS_BIND_H
#define COWFS_BIND_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "channel.h"

struct channel_object {
	PyObject_HEAD
	struct channel *ch; /* set by __init__, once */
};

/* Raise OSError for a negative errno. Returns NULL. */
PyObject *os_error(int negative_errno);

/* None, or os_error() if the number is negative. */
PyObject *none_or_error(int err);

/* An O& converter: an int from 0 to 2**64 - 1 becomes the uint64_t at out. */
int to_u64(PyObject *value, void *out);

/* The channel of an object, or NULL with an exception when __init__ has not run. */
struct channel *channel_of(PyObject *self);

/* Take touch.lock. The GIL is let go meanwhile if another thread has the lock. */
void lock_touch(struct channel *ch);

#endif
