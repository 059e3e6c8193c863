/*
 * bind_counts.h - what is counted, as Python has it
 */
#ifndef COWFS_BIND_COUNTS_H
#define COWFS_BIND_COUNTS_H

#include "bind.h"

/* For each opcode that ever came: Channel.counters() of _channel.pyi. NULL with an exception. */
PyObject *counters_as_dict(const struct counters *counters);

/* read_counts() of _channel.pyi. */
PyObject *read_counts(PyObject *module, PyObject *fd);

#endif
