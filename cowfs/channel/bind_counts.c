/*
 * bind_counts.c - what is counted, as Python has it
 */
#include "bind_counts.h"

#include <errno.h>

#include "agreement.h"

/* The value is taken over. -1 with an exception, also when there is none. */
static int set_item(PyObject *dict, const char *key, PyObject *value)
{
	int err = value ? PyDict_SetItemString(dict, key, value) : -1;

	Py_XDECREF(value);
	return err;
}

static PyObject *counter_as_dict(const struct counter *k)
{
	return Py_BuildValue("{sK sK sK sK sK}",
			     "count", (unsigned long long)atomic_load(&k->count),
			     "errors", (unsigned long long)atomic_load(&k->errors),
			     "answered_here", (unsigned long long)atomic_load(&k->answered_here),
			     "total_ns", (unsigned long long)atomic_load(&k->total_ns),
			     "max_ns", (unsigned long long)atomic_load(&k->max_ns));
}

PyObject *counters_as_dict(const struct counters *counters)
{
	PyObject *all = PyDict_New();

	for (uint32_t i = 0; all && i < OPCODES; i++) {
		const struct counter *k = &counters->by_opcode[i];

		if (atomic_load(&k->count) &&
		    set_item(all, opcode_info(i)->name, counter_as_dict(k)) < 0)
			Py_CLEAR(all);
	}
	return all;
}

static PyObject *tally_as_dict(const struct tally *tally)
{
	PyObject *all = PyDict_New();

	for (int word = 0; all && word < TALLY_WORDS; word++)
		if (set_item(all, tally_name(word),
			     PyLong_FromUnsignedLongLong(atomic_load(&tally->words[word]))) < 0)
			Py_CLEAR(all);
	return all;
}

PyObject *read_counts(PyObject *module, PyObject *arg)
{
	static const char why[] = "its ledger has another layout";
	struct ledger_counts counts;
	struct ledger_init init;
	PyObject *requests, *tally;
	int fd = PyObject_AsFileDescriptor(arg);
	bool passes = false;
	int err;

	(void)module;
	if (fd < 0)
		return NULL;
	err = ledger_peek_counts(fd, &counts);
	if (!err && !ledger_peek_init(fd, &init))
		passes = agreement_flags(&init.out) & FUSE_PASSTHROUGH;
	if (err == -EPROTO || err == -EINVAL) {
		PyErr_SetString(PyExc_ValueError, why);
		return NULL;
	}
	if (err)
		return os_error(err);
	requests = counters_as_dict(&counts.counters);
	tally = requests ? tally_as_dict(&counts.tally) : NULL;
	if (!tally) {
		Py_XDECREF(requests);
		return NULL;
	}
	return Py_BuildValue("{sI sN sK sK sK sN sN}", "lives", counts.lives,
			     "passthrough", PyBool_FromLong(passes),
			     "files", (unsigned long long)counts.files,
			     "handles", (unsigned long long)counts.handles,
			     "passed", (unsigned long long)counts.passed,
			     "requests", requests, "tally", tally);
}
