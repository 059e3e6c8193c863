/*
 * bind_names.h - what the channel, or the kernel, knows of names and attributes
 */
#ifndef COWFS_BIND_NAMES_H
#define COWFS_BIND_NAMES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Ends with an empty row. */
extern const PyMethodDef name_methods[];

#endif
