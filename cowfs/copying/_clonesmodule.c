/*
 * _clonesmodule.c - clones of plain files, many in one call or one without a name (_clones.pyi says
 * what it promises)
 *
 * Eight system calls for each file, nine for a sealed one, and nothing between them. What needs a
 * decision is left to the caller: entries that are no regular files, and extended attributes.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "clone.h"

#define MAX_MARKS 4

/* O_NONBLOCK: what was a file a moment ago may be a fifo now. */
#define OPEN_SOURCE (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
#define OPEN_NEW (O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC)

/* What is the same for all files of one call. */
struct job {
	int source, target; /* directories */
	uid_t uid;          /* of what is made here */
	gid_t gid;
	mode_t dropped;     /* bits of a mode that making a file may drop */
	bool seal;
	bool flags_known;
	int flags;          /* of a sealed file */
};

enum outcome { FAILED = -1, DONE, LEFT };

/* Other flags are inherited from the directory, so those of one new file are those of all, unless the
 * clone wanted them otherwise. */
static int seal(struct job *job, int fd, bool has_own_flags)
{
	int flags = job->flags;

	if (has_own_flags || !job->flags_known) {
		if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
			goto failed;
		flags |= FS_IMMUTABLE_FL;
	}
	if (!has_own_flags) {
		job->flags = flags;
		job->flags_known = true;
	}
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0)
		return 0;
failed:
	/* a safety net, and not every filesystem has it */
	return errno == ENOTTY || errno == EOPNOTSUPP ? 0 : -1;
}

static int fill(struct job *job, int target, int source, const struct stat *st)
{
	struct timespec times[2] = {st->st_atim, st->st_mtim};
	int cloned = clone_data(target, source, st);

	if (cloned < 0)
		return -1;
	/* After the data and in this order: chown(2) clears set-id bits, and all of them set times. */
	if ((st->st_uid != job->uid || st->st_gid != job->gid) &&
	    fchown(target, st->st_uid, st->st_gid) < 0)
		return -1;
	if (st->st_mode & job->dropped && fchmod(target, st->st_mode & 07777) < 0)
		return -1;
	if (futimens(target, times) < 0)
		return -1;
	return job->seal ? seal(job, target, cloned == 1) : 0;
}

/* Close without losing errno. */
static void done_with(int fd)
{
	int saved = errno;

	close(fd);
	errno = saved;
}

static enum outcome copy(struct job *job, int source, const char *name)
{
	enum outcome outcome;
	struct stat st;
	ssize_t size;
	int target;

	if (fstat(source, &st) < 0)
		return FAILED;
	if (!S_ISREG(st.st_mode))
		return LEFT;
	size = flistxattr(source, NULL, 0);
	if (size > 0)
		return LEFT;
	if (size < 0 && errno != EOPNOTSUPP)
		return FAILED;
	target = openat(job->target, name, OPEN_NEW, st.st_mode & 0777);
	if (target < 0)
		return FAILED;
	outcome = fill(job, target, source, &st) < 0 ? FAILED : DONE;
	done_with(target);
	return outcome;
}

static enum outcome copy_named(struct job *job, const char *name)
{
	enum outcome outcome;
	int source;

	do
		source = openat(job->source, name, OPEN_SOURCE);
	while (source < 0 && errno == EINTR);
	if (source < 0)
		return FAILED;
	outcome = copy(job, source, name);
	done_with(source);
	return outcome;
}

/* ---- the Python face ----------------------------------------------------------------------------- */

/* Clone the file, and note it in `left` if it was left alone. */
static int one(struct job *job, PyObject *name, PyObject *left)
{
	enum outcome outcome;
	PyObject *encoded;

	if (!PyUnicode_FSConverter(name, &encoded))
		return -1;
	Py_BEGIN_ALLOW_THREADS
	outcome = copy_named(job, PyBytes_AS_STRING(encoded));
	Py_END_ALLOW_THREADS
	Py_DECREF(encoded);
	if (outcome == FAILED) {
		PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name);
		return -1;
	}
	if (outcome == LEFT && PyList_Append(left, name) < 0)
		return -1;
	return PyErr_CheckSignals();
}

static PyObject *clone_files(PyObject *module, PyObject *args)
{
	struct job job = {0};
	PyObject *names, *left;
	int seals;

	(void)module;
	if (!PyArg_ParseTuple(args, "iiO!(II)Ip:clone_files", &job.source, &job.target,
			      &PyList_Type, &names, &job.uid, &job.gid, &job.dropped, &seals))
		return NULL;
	job.seal = seals;
	left = PyList_New(0);
	if (!left)
		return NULL;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
		PyObject *name = Py_NewRef(PyList_GET_ITEM(names, i));
		int err = one(&job, name, left);

		Py_DECREF(name);
		if (err < 0) {
			Py_DECREF(left);
			return NULL;
		}
	}
	return left;
}

static PyObject *clone_file(PyObject *module, PyObject *args)
{
	struct clone_mark marks[MAX_MARKS];
	const char *birth_mark;
	int source, directory, with_data;
	int target = -1;
	PyObject *given;
	struct stat st;

	(void)module;
	if (!PyArg_ParseTuple(args, "iipO!y:clone_file", &source, &directory, &with_data,
			      &PyTuple_Type, &given, &birth_mark))
		return NULL;
	if (PyTuple_GET_SIZE(given) > MAX_MARKS) {
		PyErr_SetString(PyExc_ValueError, "too many attributes");
		return NULL;
	}
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); i++) {
		const char *value;
		Py_ssize_t size;

		if (!PyArg_ParseTuple(PyTuple_GET_ITEM(given, i), "yy#", &marks[i].name, &value,
				      &size))
			return NULL;
		marks[i].value = value;
		marks[i].size = (size_t)size;
	}
	Py_BEGIN_ALLOW_THREADS
	if (fstat(source, &st) == 0)
		target = clone_unnamed(source, &st, directory, with_data, marks,
				       (int)PyTuple_GET_SIZE(given), birth_mark);
	Py_END_ALLOW_THREADS
	return target < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(target);
}

static PyMethodDef methods[] = {
	{"clone_file", clone_file, METH_VARARGS, "Clones one file; see cowfs/copying/_clones.pyi."},
	{"clone_files", clone_files, METH_VARARGS, "Clones plain files; see cowfs/copying/_clones.pyi."},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_clones",
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__clones(void)
{
	return PyModuleDef_Init(&module_def);
}
