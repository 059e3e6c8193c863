/*
 * dataplane.c - requests on open files, answered from the backing file
 *
 * Knows how to turn a request into system calls on a descriptor. Which descriptor that is, the
 * node table says; what the file is called, nobody here needs to know. Every errno of the backing
 * filesystem goes to the caller unchanged.
 *
 * Locking: none but `flushing`, which nobody waits for, and a backing's `syncing`. A backing is
 * borrowed for the length of the call, so its descriptor cannot be closed or reused underneath; the
 * node's lock is not held over I/O.
 */
#include "dataplane.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernel.h"
#include "node_restore.h"
#include "privileges.h"

/* Read a structure that may stand unaligned in the request. */
#define TAKE(type, name)                                                                           \
	struct type name;                                                                          \
	memcpy(&name, rq->body, sizeof(name))

static void answer_read(struct channel *ch, const struct request *rq, struct backing *b)
{
	TAKE(fuse_read_in, in);
	size_t want = in.size < ch->max_read ? in.size : ch->max_read;
	size_t got = 0;
	bool follows;
	int err = 0;

	if (b->id > 0) {
		/* A passed-through file is only read here for fadvise(WILLNEED) and readahead(2).
		 * Data would fill a second page cache: start the read-ahead where the pages
		 * belong. The kernel drops the error silently, and keeps the empty pages that it
		 * made for the data: have them taken away. */
		readahead(b->fd, (off_t)in.offset, in.size);
		answer_here(ch, rq, EIO, NULL, 0);
		notify_inval_pages(ch, rq->head.nodeid, in.offset, in.size);
		return;
	}
	follows = ahead_follows(&b->stream, in.offset, want);
	while (got < want) {
		ssize_t n = pread(b->fd, rq->scratch + got, want - got, (off_t)(in.offset + got));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			err = errno;
		if (n <= 0)
			break;
		got += (size_t)n;
	}
	tally_add(ch->tally, b->kind == NODE_SHARED ? TALLY_READ_SHARED : TALLY_READ_PRIVATE, got);
	served_count(&ch->served, rq->start_ns, rq->head.pid, rq->head.nodeid, false, got);
	answer_here(ch, rq, got ? 0 : err, rq->scratch, got);
	if (follows && got)
		ahead_read(&ch->ahead, &b->stream, b->fd);
}

static void answer_write(struct channel *ch, const struct request *rq, const struct backing *b)
{
	TAKE(fuse_write_in, in);
	const uint8_t *data = rq->body + sizeof(in);
	struct fuse_write_out out = {0};
	int err = 0;

	if (in.size != rq->body_len - sizeof(in))
		err = EINVAL;
	else if (b->kind != NODE_PRIVATE)
		err = EPERM; /* the template is never written */
	else if (in.write_flags & FUSE_WRITE_KILL_SUIDGID)
		err = drop_privileges(ch, rq, rq->head.nodeid, b->fd);
	while (!err && out.size < in.size) {
		ssize_t n = pwrite(b->fd, data + out.size, in.size - out.size,
				   (off_t)(in.offset + out.size));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			err = errno;
		if (n <= 0)
			break;
		out.size += (uint32_t)n;
	}
	/* Nobody waits for these in the kernel. After a writeback it asks for the attributes again, but
	 * takes an answer for new that an earlier GETATTR gets late (and before 5.14 it does not ask); after
	 * an asynchronous O_DIRECT it does not. */
	if (in.write_flags & FUSE_WRITE_CACHE || in.flags & O_DIRECT)
		notify_inval_attr(ch, rq->head.nodeid);
	tally_add(ch->tally, TALLY_WRITTEN, out.size);
	served_count(&ch->served, rq->start_ns, rq->head.pid, rq->head.nodeid, true, out.size);
	answer_here(ch, rq, out.size ? 0 : err, &out, sizeof(out));
}

/* The kernel has no two syncs of one file under way, so nobody waits for `syncing` today. */
static void answer_fsync(struct channel *ch, const struct request *rq, struct backing *b)
{
	TAKE(fuse_fsync_in, in);
	bool data_only = in.fsync_flags & FUSE_FSYNC_FDATASYNC;
	int err;

	nodes_look_back(&ch->nodes, rq->head.nodeid, b);
	pthread_mutex_lock(&b->syncing);
	err = (data_only ? fdatasync(b->fd) : fsync(b->fd)) < 0 ? errno : 0;
	err = nodes_synced(&ch->nodes, rq->head.nodeid, in.fh, err);
	pthread_mutex_unlock(&b->syncing);
	answer_here(ch, rq, err, NULL, 0);
}

/* Have what was stored through a mapping written: until then it is a hole of the backing file, and
 * who copies by holes would lose it. This waits for other workers, so only one may. */
static bool flush_mappings(struct channel *ch, uint64_t nodeid)
{
	if (pthread_mutex_trylock(&ch->flushing))
		return false;
	notify_inval_data(ch, nodeid);
	pthread_mutex_unlock(&ch->flushing);
	return true;
}

/* The answer for a file that has no holes; lseek(2) allows it for any file. */
static off_t seek_without_holes(int fd, const struct fuse_lseek_in *in)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -1;
	if (in->offset >= (uint64_t)st.st_size) {
		errno = ENXIO;
		return -1;
	}
	return in->whence == SEEK_DATA ? (off_t)in->offset : st.st_size;
}

static void answer_lseek(struct channel *ch, const struct request *rq, const struct backing *b)
{
	TAKE(fuse_lseek_in, in);
	/* A mapping keeps its writer's descriptor open; a passed-through file has no pages here. */
	bool stored = b->kind == NODE_PRIVATE && b->id == 0 &&
		      nodes_writers(&ch->nodes, rq->head.nodeid);
	off_t at = -1;

	/* The descriptor's own position, which this moves, is used by nobody. */
	if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE)
		errno = EINVAL; /* the others are answered by the kernel itself */
	else if (stored && !flush_mappings(ch, rq->head.nodeid))
		at = seek_without_holes(b->fd, &in);
	else
		at = lseek(b->fd, (off_t)in.offset, (int)in.whence);
	if (at < 0) {
		answer_here(ch, rq, errno, NULL, 0);
	} else {
		struct fuse_lseek_out out = {.offset = (uint64_t)at};
		answer_here(ch, rq, 0, &out, sizeof(out));
	}
}

static void answer_fallocate(struct channel *ch, const struct request *rq,
			     const struct backing *b)
{
	TAKE(fuse_fallocate_in, in);
	int err = EPERM;

	if (b->kind == NODE_PRIVATE) {
		err = drop_privileges_of_user(ch, rq, rq->head.nodeid, b->fd);
		while (!err &&
		       fallocate(b->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length) < 0 &&
		       (err = errno) == EINTR)
			err = 0;
		/* The kernel asks for the attributes again, but where the size stays it takes an answer
		 * for new that an earlier GETATTR gets late. */
		if (in.mode & FALLOC_FL_KEEP_SIZE && b->id == 0)
			notify_inval_attr(ch, rq->head.nodeid);
	}
	answer_here(ch, rq, err, NULL, 0);
}

/* Two opcodes, which differ in how they say how much was copied. A short copy is no error. */
static void answer_copy(struct channel *ch, const struct request *rq, const struct backing *from)
{
	TAKE(fuse_copy_file_range_in, in);
	struct backing *to = nodes_borrow(&ch->nodes, in.nodeid_out);
	off_t off_in = (off_t)in.off_in, off_out = (off_t)in.off_out;
	bool wide = rq->head.opcode == FUSE_COPY_FILE_RANGE_64;
	/* the kernel's own limit for one copy is 2 GiB less a page; 47 has 32 bits for the answer */
	uint64_t most = wide ? SSIZE_MAX : UINT32_MAX & ~4095u;
	size_t len = (size_t)(in.len < most ? in.len : most);
	int err = 0;
	ssize_t n = -1;

	if (!to)
		err = EIO;
	else if (to->kind != NODE_PRIVATE)
		err = EPERM;
	else
		err = drop_privileges_of_user(ch, rq, in.nodeid_out, to->fd);
	while (!err && (n = copy_file_range(from->fd, &off_in, to->fd, &off_out, len, 0)) < 0 &&
	       (err = errno) == EINTR)
		err = 0;
	if (!err)
		tally_add(ch->tally, TALLY_COPIED, (uint64_t)n);
	if (err) {
		answer_here(ch, rq, err, NULL, 0);
	} else if (wide) {
		struct fuse_copy_file_range_out out = {.bytes_copied = (uint64_t)n};
		answer_here(ch, rq, 0, &out, sizeof(out));
	} else {
		struct fuse_write_out out = {.size = (uint32_t)n};
		answer_here(ch, rq, 0, &out, sizeof(out));
	}
	if (to)
		nodes_return(&ch->nodes, to);
}

static void answer_release(struct channel *ch, const struct request *rq)
{
	TAKE(fuse_release_in, in);
	uint64_t unique = first_unique(rq->head.unique);
	struct unacked *unacked = NULL;

	/* XFS allocates more than was written, and takes it back when the file is closed. */
	if ((!rq->resent || !nodes_resent(&ch->nodes, unique, &unacked)) &&
	    nodes_release(&ch->nodes, rq->head.nodeid, in.fh,
			  (in.flags & O_ACCMODE) != O_RDONLY, unique, &unacked))
		notify_inval_attr(ch, rq->head.nodeid);
	answer_here(ch, rq, 0, NULL, 0);
	if (unacked)
		ledger_acknowledge(unacked);
}

void dataplane_answer(struct channel *ch, const struct request *rq)
{
	struct backing *b;

	switch (rq->head.opcode) {
	case FUSE_RELEASE:
		answer_release(ch, rq);
		return;
	case FUSE_FLUSH: /* FOPEN_NOFLUSH saves most of them; there is nothing to flush */
	case FUSE_DESTROY:
		answer_here(ch, rq, 0, NULL, 0);
		return;
	}

	b = nodes_borrow(&ch->nodes, rq->head.nodeid);
	if (!b || b->fd < 0) { /* nothing backs it, or it was lost with the daemon before */
		answer_here(ch, rq, EIO, NULL, 0);
		if (b)
			nodes_return(&ch->nodes, b);
		return;
	}
	switch (rq->head.opcode) {
	case FUSE_READ:
		answer_read(ch, rq, b);
		break;
	case FUSE_WRITE:
		answer_write(ch, rq, b);
		break;
	case FUSE_FSYNC:
		answer_fsync(ch, rq, b);
		break;
	case FUSE_LSEEK:
		answer_lseek(ch, rq, b);
		break;
	case FUSE_FALLOCATE:
		answer_fallocate(ch, rq, b);
		break;
	case FUSE_COPY_FILE_RANGE:
	case FUSE_COPY_FILE_RANGE_64:
		answer_copy(ch, rq, b);
		break;
	default:
		answer_here(ch, rq, ENOSYS, NULL, 0);
		break;
	}
	nodes_return(&ch->nodes, b);
}
