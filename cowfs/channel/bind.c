/*
 * bind.c - what every file of the channel's Python face needs
 *
 * The face is in five files: bind_life.c, bind_nodes.c and bind_names.c have the methods of a Channel,
 * bind_counts.c what is counted, and _channelmodule.c puts them together. They know Python objects and struct channel, and no
 * protocol. Errors of the core, negative errno values, become OSError here. _channel.pyi says what each
 * call promises.
 *
 * The GIL: released in mount(), start(), resume(), close() and the two invalidations that are sent at
 * once, which may wait. Held in all others, which take a mutex for a few instructions and never wait:
 * giving the GIL up and getting it back costs more than they do, and up to a whole switch interval when
 * a thread computes. touch.lock may be held over system calls of another thread: it is waited for
 * without the GIL, if it is not free.
 */
#include "bind.h"

#include <errno.h>

PyObject *os_error(int negative_errno)
{
	errno = -negative_errno;
	return PyErr_SetFromErrno(PyExc_OSError);
}

PyObject *none_or_error(int err)
{
	if (err < 0)
		return os_error(err);
	Py_RETURN_NONE;
}

int to_u64(PyObject *value, void *out)
{
	unsigned long long n = PyLong_AsUnsignedLongLong(value);
	if (n == (unsigned long long)-1 && PyErr_Occurred())
		return 0;
	*(uint64_t *)out = n;
	return 1;
}

struct channel *channel_of(PyObject *self)
{
	struct channel *ch = ((struct channel_object *)self)->ch;
	if (!ch)
		PyErr_SetString(PyExc_ValueError, "Channel.__init__ has not been called");
	return ch;
}

void lock_touch(struct channel *ch)
{
	if (pthread_mutex_trylock(&ch->touch.lock) == 0)
		return;
	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&ch->touch.lock);
	Py_END_ALLOW_THREADS
}
