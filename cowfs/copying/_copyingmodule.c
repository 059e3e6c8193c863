/*
 * _copyingmodule.c - copies segments of files through io_uring (_copying.pyi says what it promises)
 *
 * Each buffer goes round in a circle of its own: a read is queued, its completion queues the write,
 * and that one's completion the next read. One io_uring_enter(2) submits what has piled up and
 * waits for half of what is under way: waiting for one would mean a call for each operation, and
 * waiting for all would leave the disks idle meanwhile.
 *
 * Operations that are handed to the kernel's own threads can be forgotten there (seen on Linux
 * 6.18: two writes to ext4 that no thread came for). So when nothing at all is over after a while,
 * what is under way is called back, and the copy goes on with pread(2) and pwrite(2). A slow disk
 * loses nothing but speed by that: what has begun is not called back, and is waited for.
 *
 * The GIL is released while a copy runs. One thread uses a ring at a time; `busy` sees to it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_DEPTH 1024
#define MAX_BLOCK (1u << 30)
#define PATIENCE 10.0           /* seconds in which something should be over */
#define CALLED_BACK UINT64_MAX  /* the data of a call back; of anything else it is a slot's index */

struct segment {
	int source, target;
	uint64_t offset, length;
};

/* One buffer and what is being done with it. */
struct slot {
	uint8_t *buffer;
	size_t segment;
	uint64_t offset;  /* in the files, of the buffer's first byte */
	unsigned length;  /* wanted */
	unsigned done;    /* of them read, or of them written */
	bool writing;
	unsigned next;    /* free slot */
};

struct ring_object {
	PyObject_HEAD
	struct io_uring ring;
	bool alive;
	bool registered; /* the buffers, with the kernel */
	bool busy;
	unsigned depth, block;
	uint8_t *memory;
	struct slot *slots;
	Py_ssize_t failed;
	struct __kernel_timespec patience;
};

/* One copy in progress. */
struct copy {
	struct ring_object *me;
	const struct segment *segments;
	size_t count;
	size_t current;   /* the segment to read next from */
	uint64_t at;      /* bytes of it that are given out */
	unsigned free;    /* the first free slot, depth for none */
	unsigned pending; /* operations under way */
	unsigned calls;   /* to call something back, under way */
	bool stalled;     /* no operation is given to the ring any more */
	int error;        /* 0, or a positive errno: nothing new is begun */
};

static void fail(struct copy *copy, int error, size_t segment)
{
	if (!copy->error) {
		copy->error = error;
		copy->me->failed = (Py_ssize_t)segment;
	}
}

/* Queue what is left of a slot's read or write. The queue has room for one of each slot. */
static void queue(struct copy *copy, struct slot *slot)
{
	struct ring_object *me = copy->me;
	const struct segment *segment = &copy->segments[slot->segment];
	struct io_uring_sqe *sqe = io_uring_get_sqe(&me->ring);
	unsigned index = (unsigned)(slot - me->slots);
	uint8_t *buffer = slot->buffer + slot->done;
	unsigned length = slot->length - slot->done;
	uint64_t offset = slot->offset + slot->done;

	if (!sqe) { /* cannot be: the queue is as long as there are slots */
		fail(copy, EBUSY, slot->segment);
		return;
	}
	if (slot->writing && me->registered)
		io_uring_prep_write_fixed(sqe, segment->target, buffer, length, offset, (int)index);
	else if (slot->writing)
		io_uring_prep_write(sqe, segment->target, buffer, length, offset);
	else if (me->registered)
		io_uring_prep_read_fixed(sqe, segment->source, buffer, length, offset, (int)index);
	else
		io_uring_prep_read(sqe, segment->source, buffer, length, offset);
	io_uring_sqe_set_data64(sqe, index);
	copy->pending++;
}

/* The same, done here and now: bytes, or a negative errno. */
static int do_now(struct copy *copy, struct slot *slot)
{
	const struct segment *segment = &copy->segments[slot->segment];
	uint8_t *buffer = slot->buffer + slot->done;
	unsigned length = slot->length - slot->done;
	off_t offset = (off_t)(slot->offset + slot->done);
	ssize_t done = slot->writing ? pwrite(segment->target, buffer, length, offset)
				     : pread(segment->source, buffer, length, offset);

	return done < 0 ? -errno : (int)done;
}

/* Take what came of a slot's operation; true when another one is to follow. */
static bool advance(struct copy *copy, struct slot *slot, int result)
{
	if (result == -EINTR || result == -EAGAIN || (result == -ECANCELED && copy->stalled))
		return !copy->error; /* again */
	if (result < 0)
		fail(copy, -result, slot->segment);
	else if (result == 0)
		fail(copy, slot->writing ? EIO : ENODATA, slot->segment);
	if (copy->error)
		return false;
	slot->done += (unsigned)result;
	if (slot->done == slot->length && slot->writing) {
		slot->next = copy->free;
		copy->free = (unsigned)(slot - copy->me->slots);
		return false;
	}
	if (slot->done == slot->length) {
		slot->writing = true;
		slot->done = 0;
	}
	return true;
}

/* Do what is next with a slot. */
static void go_on(struct copy *copy, struct slot *slot)
{
	while (copy->stalled) {
		if (!advance(copy, slot, do_now(copy, slot)))
			return;
	}
	queue(copy, slot);
}

/* Begin a read with every free slot while there is something to read; one, if that is done here. */
static void begin_reads(struct copy *copy)
{
	struct ring_object *me = copy->me;

	while (!copy->error && copy->free < me->depth && copy->current < copy->count) {
		const struct segment *segment = &copy->segments[copy->current];
		uint64_t left = segment->length - copy->at;
		struct slot *slot = &me->slots[copy->free];

		if (!left) {
			copy->current++;
			copy->at = 0;
			continue;
		}
		copy->free = slot->next;
		slot->segment = copy->current;
		slot->offset = segment->offset + copy->at;
		slot->length = left < me->block ? (unsigned)left : me->block;
		slot->done = 0;
		slot->writing = false;
		copy->at += slot->length;
		go_on(copy, slot);
		if (copy->stalled)
			return;
	}
}

/* An operation is over: go on with its slot, or free it. */
static void complete(struct copy *copy, const struct io_uring_cqe *cqe)
{
	uint64_t index = io_uring_cqe_get_data64(cqe);

	if (index == CALLED_BACK) {
		copy->calls--;
		return;
	}
	copy->pending--;
	if (advance(copy, &copy->me->slots[index], cqe->res))
		go_on(copy, &copy->me->slots[index]);
}

/* Nothing is over, and should be. All that was queued is with the kernel, so there is room. */
static void call_back(struct copy *copy)
{
	struct ring_object *me = copy->me;

	copy->stalled = true;
	for (unsigned index = 0; index < me->depth; index++) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&me->ring);

		if (!sqe)
			return;
		io_uring_prep_cancel64(sqe, index, 0);
		io_uring_sqe_set_data64(sqe, CALLED_BACK);
		copy->calls++;
	}
}

/* Submit what is queued, and wait for some of what is under way. */
static int wait_for_some(struct copy *copy)
{
	struct ring_object *me = copy->me;
	unsigned all = copy->pending + copy->calls;
	unsigned enough = all > 1 ? all / 2 : 1;
	struct io_uring_cqe *first;

	/* Without the feature (before Linux 5.11) liburing would need a place in the queue for that. */
	if (copy->stalled || !(me->ring.features & IORING_FEAT_EXT_ARG))
		return io_uring_submit_and_wait(&me->ring, enough);
	return io_uring_submit_and_wait_timeout(&me->ring, &first, enough, &me->patience, NULL);
}

/* True when a handler of a signal that has come raised. */
static bool signal_raised(PyThreadState **saved)
{
	bool raised;

	PyEval_RestoreThread(*saved);
	raised = PyErr_CheckSignals() < 0;
	*saved = PyEval_SaveThread();
	return raised;
}

/* Runs without the GIL. Returns with nothing under way, whatever happened. */
static bool run(struct copy *copy, PyThreadState **saved)
{
	struct io_uring *ring = &copy->me->ring;
	bool raised = false;

	for (;;) {
		struct io_uring_cqe *cqe;
		unsigned head, seen = 0;
		int err;

		begin_reads(copy);
		if (!copy->pending && !copy->calls) {
			if (copy->error || copy->current == copy->count)
				return raised;
			err = -EINTR; /* no call to wait in: look for signals here */
		} else {
			err = wait_for_some(copy);
		}
		if (err == -ETIME && !io_uring_cq_ready(ring))
			call_back(copy);
		if (err == -EINTR && !raised && signal_raised(saved)) {
			raised = true;
			fail(copy, EINTR, 0);
		} else if (err < 0 && err != -EINTR && err != -EAGAIN && err != -EBUSY &&
			   err != -ETIME) {
			/* the ring itself is broken: closing it ends what is under way */
			fail(copy, -err, 0);
			io_uring_queue_exit(ring);
			copy->me->alive = false;
			return raised;
		}
		io_uring_for_each_cqe(ring, head, cqe) {
			complete(copy, cqe);
			seen++;
		}
		io_uring_cq_advance(ring, seen);
	}
}

/* ---- the Python face ----------------------------------------------------------------------------- */

static PyObject *os_error(int error)
{
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static int make_buffers(struct ring_object *me)
{
	size_t size = (size_t)me->depth * me->block;
	struct iovec *vectors;

	me->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (me->memory == MAP_FAILED) {
		me->memory = NULL;
		return -1;
	}
	me->slots = PyMem_Calloc(me->depth, sizeof(*me->slots));
	vectors = PyMem_Calloc(me->depth, sizeof(*vectors));
	if (!me->slots || !vectors) {
		PyMem_Free(vectors);
		return -1;
	}
	for (unsigned i = 0; i < me->depth; i++) {
		me->slots[i].buffer = me->memory + (size_t)i * me->block;
		vectors[i].iov_base = me->slots[i].buffer;
		vectors[i].iov_len = me->block;
	}
	/* It saves pinning the pages for each operation; where the limit of locked memory is too
	 * small for that, the buffers do as they are. */
	me->registered = io_uring_register_buffers(&me->ring, vectors, me->depth) == 0;
	PyMem_Free(vectors);
	return 0;
}

static int Ring_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"depth", "block", "patience", NULL};
	struct ring_object *me = (struct ring_object *)self;
	unsigned depth, block;
	double patience = PATIENCE;
	int err;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "II|d:Ring", names, &depth, &block, &patience))
		return -1;
	if (me->slots) {
		PyErr_SetString(PyExc_ValueError, "a Ring is initialised once");
		return -1;
	}
	if (!depth || depth > MAX_DEPTH || !block || block > MAX_BLOCK) {
		PyErr_SetString(PyExc_ValueError, "depth is 1 to 1024, block 1 byte to 1 GiB");
		return -1;
	}
	if (!(patience >= 0 && patience < 1e9)) {
		PyErr_SetString(PyExc_ValueError, "patience is 0 to 1e9 seconds");
		return -1;
	}
	err = io_uring_queue_init(depth, &me->ring, 0);
	if (err < 0) {
		os_error(-err);
		return -1;
	}
	me->alive = true;
	me->depth = depth;
	me->block = block;
	me->patience.tv_sec = (long long)patience;
	me->patience.tv_nsec = (long long)((patience - (double)me->patience.tv_sec) * 1e9);
	if (make_buffers(me) < 0) {
		PyErr_NoMemory();
		return -1;
	}
	return 0;
}

static void Ring_dealloc(PyObject *self)
{
	struct ring_object *me = (struct ring_object *)self;
	PyTypeObject *type = Py_TYPE(self);

	if (me->alive)
		io_uring_queue_exit(&me->ring);
	if (me->memory)
		munmap(me->memory, (size_t)me->depth * me->block);
	PyMem_Free(me->slots);
	type->tp_free(self);
	Py_DECREF(type);
}

/* The segments of a sequence of tuples, to be freed by the caller; NULL with an exception. */
static struct segment *parse(PyObject *fast)
{
	Py_ssize_t count = PySequence_Fast_GET_SIZE(fast);
	struct segment *segments = PyMem_Calloc((size_t)count + 1, sizeof(*segments));

	if (!segments) {
		PyErr_NoMemory();
		return NULL;
	}
	for (Py_ssize_t i = 0; i < count; i++) {
		PyObject *item = PySequence_Fast_GET_ITEM(fast, i);
		long long offset, length;

		if (!PyTuple_Check(item) ||
		    !PyArg_ParseTuple(item, "iiLL:copy", &segments[i].source, &segments[i].target,
				      &offset, &length) ||
		    offset < 0 || length < 0 || offset > INT64_MAX - length) {
			PyMem_Free(segments);
			if (!PyErr_Occurred())
				PyErr_SetString(PyExc_ValueError, "not a segment");
			return NULL;
		}
		segments[i].offset = (uint64_t)offset;
		segments[i].length = (uint64_t)length;
	}
	return segments;
}

static PyObject *Ring_copy(PyObject *self, PyObject *sequence)
{
	struct ring_object *me = (struct ring_object *)self;
	struct copy copy = {.me = me};
	struct segment *segments;
	PyThreadState *saved;
	PyObject *fast;
	bool raised;

	fast = PySequence_Fast(sequence, "segments is a sequence of tuples");
	if (!fast)
		return NULL;
	segments = parse(fast);
	copy.count = (size_t)PySequence_Fast_GET_SIZE(fast);
	Py_DECREF(fast);
	if (!segments)
		return NULL;
	if (!me->alive || me->busy) {
		PyMem_Free(segments);
		PyErr_SetString(PyExc_ValueError, me->busy ? "the Ring is in use" : "the Ring is broken");
		return NULL;
	}
	copy.segments = segments;
	for (unsigned i = 0; i < me->depth; i++)
		me->slots[i].next = i + 1;
	me->failed = -1;
	me->busy = true;
	saved = PyEval_SaveThread();
	raised = run(&copy, &saved);
	PyEval_RestoreThread(saved);
	me->busy = false;
	PyMem_Free(segments);
	if (raised)
		return NULL;
	if (copy.error)
		return os_error(copy.error);
	Py_RETURN_NONE;
}

static PyObject *Ring_get_failed(PyObject *self, void *closure)
{
	(void)closure;
	return PyLong_FromSsize_t(((struct ring_object *)self)->failed);
}

static PyMethodDef ring_methods[] = {
	{"copy", Ring_copy, METH_O, NULL},
	{NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_getset[] = {
	{"failed", Ring_get_failed, NULL, NULL, NULL},
	{NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
	{Py_tp_doc, (void *)"Copies segments of files; see cowfs/copying/_copying.pyi."},
	{Py_tp_init, (void *)Ring_init},
	{Py_tp_dealloc, (void *)Ring_dealloc},
	{Py_tp_methods, ring_methods},
	{Py_tp_getset, ring_getset},
	{0, NULL},
};

static PyType_Spec ring_spec = {
	.name = "cowfs.copying._copying.Ring",
	.basicsize = sizeof(struct ring_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = ring_slots,
};

static int module_exec(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&ring_spec);

	if (!type)
		return -1;
	if (PyModule_AddObject(module, "Ring", type) < 0) {
		Py_DECREF(type);
		return -1;
	}
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, (void *)module_exec},
	{0, NULL},
};

static struct PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_copying",
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__copying(void)
{
	return PyModuleDef_Init(&module_def);
}
