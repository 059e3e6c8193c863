/*
 * relay.c - requests that go to libfuse, and what has to be changed in them
 *
 * libfuse and pyfuse3 trust their peer, so nothing larger than a socket message and no file handle of
 * the kernel's goes through. What they have no word for is said by names that begin with a slash
 * (words.h): that a change may have been made before, that a CREATE is an O_TMPFILE, that a GETXATTR is
 * a STATX.
 *
 * What is relayed is well formed: serve.c has looked.
 *
 * Locking: none. Sending blocks while the socket is full, which is how a busy Python slows its callers
 * down.
 */
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/xattr.h>

#include "kernel.h"
#include "opcodes.h"
#include "words.h"

/* Bytes that marking a request adds at most: the number of an exchange, and two slashes. */
#define MAX_MARK 24

/* libfuse knows the short form. That setgid has to go with this ACL is said by a slash. */
static void shorten_setxattr(const struct channel *ch, struct request *rq)
{
	struct fuse_setxattr_in in = {0};
	bool kill_sgid;
	uint32_t cut;

	memcpy(&in, rq->body, ch->setxattr_head);
	kill_sgid = in.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID;
	cut = ch->setxattr_head - FUSE_COMPAT_SETXATTR_IN_SIZE;
	if (kill_sgid)
		cut--;
	rq->body += cut;
	rq->body_len -= cut;
	rq->head.len -= cut;
	memcpy(rq->body, &in, FUSE_COMPAT_SETXATTR_IN_SIZE);
	if (kill_sgid)
		rq->body[FUSE_COMPAT_SETXATTR_IN_SIZE] = WORD_TAKES_SETGID[0];
}

/* libfuse does not know STATX: its answer is asked for as an attribute. */
static void ask_for_statx(struct request *rq)
{
	static const char name[] = WORD_STATX;
	struct fuse_getxattr_in in = {.size = sizeof(struct wire_statx_out)};

	memcpy(rq->body, &in, sizeof(in));
	memcpy(rq->body + sizeof(in), name, sizeof(name));
	rq->body_len = sizeof(in) + sizeof(name);
	rq->head.len = sizeof(rq->head) + rq->body_len;
	rq->head.opcode = FUSE_GETXATTR;
}

_Static_assert(offsetof(struct fuse_read_in, fh) == 0, "takes_handle: READDIRPLUS");
_Static_assert(offsetof(struct fuse_fsync_in, fh) == 0, "takes_handle: FSYNC, FSYNCDIR");

/* Python knows no file handle but the node id, and has it where the kernel puts one: ours means nothing
 * there, and a directory has none, because the kernel opened it by itself. TMPFILE has the layout of
 * CREATE and the name "/", by which pyfuse3's handler knows it. */
static void adjust(const struct channel *ch, struct request *rq, const struct opcode_info *op)
{
	if (op->takes_handle)
		memcpy(rq->body, &rq->head.nodeid, sizeof(rq->head.nodeid));
	if (rq->head.opcode == FUSE_SETXATTR) {
		shorten_setxattr(ch, rq);
	} else if (rq->head.opcode == FUSE_STATX) {
		ask_for_statx(rq);
	} else if (rq->head.opcode == FUSE_TMPFILE) {
		rq->head.opcode = FUSE_CREATE;
	} else if (rq->head.opcode == FUSE_READDIRPLUS) {
		struct fuse_read_in in;
		memcpy(&in, rq->body, sizeof(in));
		if (in.size > READDIR_MAX)
			in.size = READDIR_MAX;
		memcpy(rq->body, &in, sizeof(in));
	}
}

/* Put a mark before a name at this place of the body. There is room behind it: the caller has seen that
 * the whole is no larger than RELAY_MAX. */
static void insert(struct request *rq, uint32_t at, const char *mark)
{
	uint32_t len = (uint32_t)strlen(mark);

	memmove(rq->body + at + len, rq->body + at, rq->body_len - at);
	memcpy(rq->body + at, mark, len);
	rq->body_len += len;
	rq->head.len += len;
}

/* An attribute that had to be new may have been made by this request: whether it was is seen by its
 * value, which libfuse's peer must not prevent by looking first. All others may be set twice. */
static void mark_setxattr(struct request *rq, uint32_t at)
{
	struct fuse_setxattr_in in = {0};

	memcpy(&in, rq->body, FUSE_COMPAT_SETXATTR_IN_SIZE);
	if (!(in.flags & XATTR_CREATE))
		return;
	in.flags &= ~(uint32_t)XATTR_CREATE;
	memcpy(rq->body, &in, FUSE_COMPAT_SETXATTR_IN_SIZE);
	insert(rq, at, WORD_ATTRIBUTE_AGAIN);
}

/* The handler has to know that the change may have been made already: a slash says so, two before the
 * name of an attribute, where one has a meaning. */
static void mark_resent(struct request *rq, const struct opcode_info *op)
{
	uint32_t at = op->min_body; /* where the names begin */

	switch ((enum repeat)op->repeat) {
	case REPEAT_PLAIN:
		break;
	case REPEAT_NAME:
		insert(rq, at, WORD_AGAIN);
		break;
	case REPEAT_NAMES:
		insert(rq, at, WORD_AGAIN);
		insert(rq, at + (uint32_t)strlen((const char *)rq->body + at) + 1, WORD_AGAIN);
		break;
	case REPEAT_ATTRIBUTE:
		insert(rq, at, WORD_ATTRIBUTE_AGAIN);
		break;
	case REPEAT_NEW_ATTRIBUTE:
		mark_setxattr(rq, at);
		break;
	}
}

/* Which of two names stood where before is not to be seen afterwards: an exchange has its number
 * before the old name, by which it is known again. */
static void number_exchange(struct request *rq)
{
	struct fuse_rename2_in in;
	char number[MAX_MARK];

	if (rq->head.opcode != FUSE_RENAME2)
		return;
	memcpy(&in, rq->body, sizeof(in));
	if (!(in.flags & RENAME_EXCHANGE))
		return;
	snprintf(number, sizeof(number), WORD_EXCHANGE "%" PRIu64 "/", first_unique(rq->head.unique));
	insert(rq, sizeof(in), number);
}

/* Blocks while the socket is full, which is how a busy Python slows its callers down. */
static int send_relay(struct channel *ch, struct iovec *iov, size_t count)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = count};
	ssize_t n;

	do
		n = sendmsg(ch->relay_fd, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

void relay(struct channel *ch, struct request *rq)
{
	const struct opcode_info *op = opcode_info(rq->head.opcode);
	struct iovec iov[2];
	struct pending p = {.unique = rq->head.unique,
			    .nodeid = rq->head.nodeid,
			    .opcode = rq->head.opcode,
			    .start_ns = rq->start_ns};
	uint32_t flags;

	if (op->opens) {
		memcpy(&flags, rq->body, sizeof(flags));
		p.writing = (flags & O_ACCMODE) != O_RDONLY;
	}
	adjust(ch, rq, op);
	if (op->repeat && rq->head.len + MAX_MARK <= RELAY_MAX) {
		if (rq->resent)
			mark_resent(rq, op);
		number_exchange(rq);
	}
	iov[0] = (struct iovec){&rq->head, sizeof(rq->head)};
	iov[1] = (struct iovec){rq->body, rq->body_len};
	if (rq->head.len > RELAY_MAX || pending_add(&ch->pending, &p)) {
		answer_here(ch, rq, EIO, NULL, 0);
		return;
	}
	if (send_relay(ch, iov, 2) && pending_take(&ch->pending, p.unique, &p))
		answer_here(ch, rq, EIO, NULL, 0);
}

/* FORGET and BATCH_FORGET have no reply. A batch can fill the whole request buffer: it is cut into
 * messages that fit the socket. */
void relay_mute(struct channel *ch, struct request *rq)
{
	const uint32_t most = READDIR_MAX / sizeof(struct fuse_forget_one);
	struct fuse_batch_forget_in batch;
	uint8_t *entries = rq->body + sizeof(batch);
	struct iovec iov[3] = {{&rq->head, sizeof(rq->head)}, {rq->body, rq->body_len}};
	uint32_t left;

	if (rq->head.opcode != FUSE_BATCH_FORGET) {
		send_relay(ch, iov, 2);
		return;
	}
	memcpy(&batch, rq->body, sizeof(batch));
	left = batch.count;
	if (left > (rq->body_len - sizeof(batch)) / sizeof(struct fuse_forget_one))
		return;
	while (left) {
		uint32_t n = left < most ? left : most;
		size_t bytes = n * sizeof(struct fuse_forget_one);

		batch.count = n;
		rq->head.len = (uint32_t)(sizeof(rq->head) + sizeof(batch) + bytes);
		iov[1] = (struct iovec){&batch, sizeof(batch)};
		iov[2] = (struct iovec){entries, bytes};
		if (send_relay(ch, iov, 3))
			return;
		entries += bytes;
		left -= n;
	}
}
