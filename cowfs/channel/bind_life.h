/*
 * bind_life.h - a Channel from its making to its end, and what can be asked of it meanwhile
 */
#ifndef COWFS_BIND_LIFE_H
#define COWFS_BIND_LIFE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* __init__, and the end of the object. */
int bind_init(PyObject *self, PyObject *args, PyObject *kwargs);
void bind_dealloc(PyObject *self);

/* Each ends with an empty row. */
extern const PyMethodDef life_methods[];
extern PyGetSetDef life_getset[];

#endif
