/*
 * bind_nodes.h - what backs the opens of each node
 */
#ifndef COWFS_BIND_NODES_H
#define COWFS_BIND_NODES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Ends with an empty row. */
extern const PyMethodDef node_methods[];

#endif
