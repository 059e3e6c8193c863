/*
 * replies.c - what libfuse wrote into the socket, completed and passed on to the kernel
 *
 * There is no thread for this. The thread that runs pyfuse3 has just written the reply; it calls
 * channel_drain() before it waits for anything, and so no other thread has to be woken.
 *
 * Knows the layout of every reply that needs something pyfuse3 cannot say: the inode number that
 * users see (pyfuse3 has one field for it and the node id), and in the replies to OPEN and CREATE
 * the file handle, the flags and the backing id. It does not know why a node is backed by what.
 *
 * A reply that is not what its request allows becomes EIO, so that no caller waits for ever; one
 * that belongs to no request is dropped.
 *
 * Locking: `draining` makes it one drain at a time; nothing in here blocks.
 */
#include "replies.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "kernel.h"
#include "opcodes.h"

/* An inode number that nothing has: every file shows its node id, and the root that of its directory. */
#define NO_FILE FUSE_ROOT_ID

uint64_t shown_ino(const struct channel *ch, uint64_t nodeid)
{
	return nodeid == FUSE_ROOT_ID ? ch->root_ino : nodeid;
}

/* One reply in the drain buffer. */
struct reply {
	struct fuse_out_header *head;
	uint8_t *body;
	size_t len; /* of the body */
};

/* ---- completing; each returns false for a reply that cannot be right ---------------------------- */

static bool complete_entry(struct channel *ch, struct reply *r)
{
	struct fuse_entry_out *entry = (struct fuse_entry_out *)r->body;

	if (r->len < sizeof(*entry))
		return false;
	if (entry->nodeid) /* 0: there is no such name, and that may be cached */
		entry->attr.ino = shown_ino(ch, entry->nodeid);
	return true;
}

static bool complete_attr(struct channel *ch, struct reply *r, uint64_t nodeid)
{
	struct fuse_attr_out *out = (struct fuse_attr_out *)r->body;

	if (r->len != sizeof(*out))
		return false;
	out->attr.ino = shown_ino(ch, nodeid);
	return true;
}

static bool complete_statx(struct channel *ch, struct reply *r, uint64_t nodeid)
{
	struct wire_statx_out *out = (struct wire_statx_out *)r->body;

	if (r->len != sizeof(*out))
		return false;
	out->ino = shown_ino(ch, nodeid);
	return true;
}

/* An open that the reply tells the kernel of. */
struct opened {
	uint64_t nodeid; /* 0: none */
	struct unacked *unacked;
};

static bool complete_open(struct channel *ch, const struct pending *p, struct wire_open_out *out,
			  uint64_t nodeid, struct opened *opened)
{
	struct open_answer answer;

	if (!nodes_opened(&ch->nodes, nodeid, p->writing, first_unique(p->unique), &answer,
			  &opened->unacked))
		return false;
	opened->nodeid = nodeid;
	*out = (struct wire_open_out){.fh = answer.fh,
				      .open_flags = answer.open_flags,
				      .backing_id = answer.backing_id};
	return true;
}

static bool complete_readdirplus(struct channel *ch, struct reply *r)
{
	size_t at = 0;

	while (at < r->len) {
		struct fuse_direntplus *d = (struct fuse_direntplus *)(r->body + at);
		uint64_t nodeid;

		if (r->len - at < FUSE_NAME_OFFSET_DIRENTPLUS ||
		    d->dirent.namelen > r->len - at - FUSE_NAME_OFFSET_DIRENTPLUS ||
		    FUSE_DIRENTPLUS_SIZE(d) > r->len - at)
			return false;
		/* Without a node id (".." for instance) the entry only says a number. Without that it
		 * is one that could not be read, and programs pass over a name whose number is 0. */
		nodeid = d->entry_out.nodeid ? d->entry_out.nodeid : d->dirent.ino;
		d->entry_out.attr.ino = d->dirent.ino = nodeid ? shown_ino(ch, nodeid) : NO_FILE;
		at += FUSE_DIRENTPLUS_SIZE(d);
	}
	return true;
}

/* *opened is set for an OPEN or CREATE, whose count goes back if the kernel does not take the
 * reply. */
static bool complete(struct channel *ch, const struct pending *p, struct reply *r,
		     struct opened *opened)
{
	struct wire_create_out *create = (struct wire_create_out *)r->body;

	switch ((enum reply_kind)opcode_info(p->opcode)->reply) {
	case REPLY_PLAIN:
		return true;
	case REPLY_ENTRY:
		return r->len == sizeof(struct fuse_entry_out) && complete_entry(ch, r);
	case REPLY_ATTR:
		return complete_attr(ch, r, p->nodeid);
	case REPLY_STATX:
		return complete_statx(ch, r, p->nodeid);
	case REPLY_ENTRIES:
		return complete_readdirplus(ch, r);
	case REPLY_OPEN:
		return r->len == sizeof(struct wire_open_out) &&
		       complete_open(ch, p, (struct wire_open_out *)r->body, p->nodeid, opened);
	case REPLY_CREATE:
		return r->len == sizeof(*create) && complete_entry(ch, r) &&
		       complete_open(ch, p, &create->open, create->entry.nodeid, opened);
	}
	return false; /* no such kind */
}

/* ---- passing on ------------------------------------------------------------------------------- */

static void pass_on_notification(struct channel *ch, const struct reply *r, size_t len)
{
	struct iovec iov = {r->head, len};

	switch (r->head->error) {
	case FUSE_NOTIFY_INVAL_INODE:
		kernel_write(ch, &iov, 1);
		break;
	case FUSE_NOTIFY_INVAL_ENTRY:
	case FUSE_NOTIFY_DELETE:
		notify_later(ch, r->head, len); /* out of memory: the entry stays cached */
		break;
	default:
		break; /* pyfuse3 behind protocol 7.13 has no others */
	}
}

static void pass_on_reply(struct channel *ch, struct reply *r, bool whole)
{
	struct pending p;
	struct opened opened = {0};
	int error;
	int err;

	if (!pending_take(&ch->pending, r->head->unique, &p))
		return;
	if (p.opcode == FUSE_INIT) {
		/* the kernel has had its own; from now on daemon_fd is libfuse's to close */
		atomic_store(&ch->libfuse_alive, true);
		return;
	}
	/* The kernel takes errors 0 .. 511 and ignores a reply that has another. */
	if (!whole || r->head->error > 0 || r->head->error < -511 || (r->head->error && r->len))
		error = EIO;
	else
		error = -r->head->error;
	if (!error && !complete(ch, &p, r, &opened))
		error = EIO;
	counters_answer(ch->counters, p.opcode, error != 0, false);
	err = kernel_answer(ch, p.unique, error, r->body, r->len);
	if (opened.nodeid && err)
		nodes_not_opened(&ch->nodes, opened.nodeid, p.writing, opened.unacked);
	else if (opened.nodeid)
		ledger_acknowledge(opened.unacked);
	counters_answered(ch->counters, p.opcode, p.start_ns);
}

uint64_t channel_oldest(struct channel *ch)
{
	uint64_t start = pending_oldest(&ch->pending);

	return start ? now_ns() - start : 0;
}

int channel_drain(struct channel *ch)
{
	int drained = 0;

	pthread_mutex_lock(&ch->draining);
	while (pending_any(&ch->pending)) {
		struct iovec iov = {ch->drain_buffer, RELAY_MAX};
		struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
		struct reply r = {(struct fuse_out_header *)ch->drain_buffer,
				  ch->drain_buffer + sizeof(struct fuse_out_header), 0};
		ssize_t n = recvmsg(ch->relay_fd, &msg, MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) /* nothing there, or libfuse has closed its end */
			break;
		if ((size_t)n < sizeof(*r.head))
			continue;
		r.len = (size_t)n - sizeof(*r.head);
		if (r.head->unique == 0) {
			if (r.head->len == (size_t)n)
				pass_on_notification(ch, &r, (size_t)n);
		} else {
			pass_on_reply(ch, &r,
				      r.head->len == (size_t)n && !(msg.msg_flags & MSG_TRUNC));
		}
		drained++;
	}
	pthread_mutex_unlock(&ch->draining);
	return drained;
}
