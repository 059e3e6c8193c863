/*
 * _channelmodule.c - the extension module: the type Channel, functions, and constants
 *
 * The methods of a Channel are in bind_life.c, bind_nodes.c and bind_names.c; bind.c says what holds
 * for all of them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "agreement.h"
#include "attr.h"
#include "bind.h"
#include "bind_counts.h"
#include "bind_life.h"
#include "bind_names.h"
#include "bind_nodes.h"
#include "ledger.h"
#include "nodes.h"
#include "privileges.h"
#include "words.h"

/* ---- functions ----------------------------------------------------------------------------------- */

static PyObject *check_ledger(PyObject *module, PyObject *args)
{
	char why[AGREEMENT_WHY] = "its ledger has another layout";
	struct ledger_init init;
	int fd, passthrough, err;

	(void)module;
	if (!PyArg_ParseTuple(args, "ip:check_ledger", &fd, &passthrough))
		return NULL;
	err = ledger_check(fd);
	if (!err)
		err = ledger_peek_init(fd, &init);
	if (!err && !agreement_can_be_served(&init, passthrough, why))
		err = -EPROTO;
	if (err == -EPROTO || err == -EINVAL) {
		PyErr_SetString(PyExc_ValueError, why);
		return NULL;
	}
	return none_or_error(err);
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

/* ---- the type ------------------------------------------------------------------------------------ */

/* A type has one table of methods, which ends with an empty row. */
static PyMethodDef channel_methods[64];

/* 0, or -1 with an exception. */
static int collect_methods(void)
{
	const PyMethodDef *const tables[] = {life_methods, node_methods, name_methods};
	const size_t room = sizeof(channel_methods) / sizeof(*channel_methods) - 1;
	size_t count = 0;

	for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++) {
		for (const PyMethodDef *m = tables[i]; m->ml_name; m++) {
			if (count == room) {
				PyErr_SetString(PyExc_SystemError, "too many methods");
				return -1;
			}
			channel_methods[count++] = *m;
		}
	}
	return 0;
}

static PyType_Slot channel_slots[] = {
	{Py_tp_doc, (void *)"The native end of one mount; see cowfs/channel/_channel.pyi."},
	{Py_tp_init, (void *)bind_init},
	{Py_tp_dealloc, (void *)bind_dealloc},
	{Py_tp_methods, channel_methods},
	{Py_tp_getset, life_getset},
	{0, NULL},
};

static PyType_Spec channel_spec = {
	.name = "cowfs.channel._channel.Channel",
	.basicsize = sizeof(struct channel_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = channel_slots,
};

/* ---- the module ---------------------------------------------------------------------------------- */

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
	PyObject *type;

	if (collect_methods() < 0)
		return -1;
	type = PyType_FromSpec(&channel_spec);
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
	{"read_counts", read_counts, METH_O, NULL},
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
