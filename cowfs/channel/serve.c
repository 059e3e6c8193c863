/*
 * serve.c - one request of the kernel: have it answered or relay it
 *
 * This file knows which requests go where (opcodes.h has the table), and lets nothing malformed
 * through. It does not know how a request is answered, nor what is changed in one that is relayed.
 *
 * Locking: none but touch.lock, which is held while a change of attributes is made and answered here.
 */
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "attr.h"
#include "dataplane.h"
#include "kernel.h"
#include "opcodes.h"
#include "relay.h"

/* After more than this many daemons have ended during one request, assume that it is the cause and fail
 * it with EIO. So many do not end by chance, or by somebody's will, while one request is under way. */
#define MAX_AGAIN 16

/* ---- what may not get through -------------------------------------------------------------------- */

/* Does the fixed part fit, and do the names end inside the body? */
static bool well_formed(const struct channel *ch, const struct request *rq,
			const struct opcode_info *op)
{
	const uint8_t *p = rq->body + op->min_body;
	const uint8_t *end = rq->body + rq->body_len;

	if (rq->body_len < op->min_body)
		return false;
	for (int i = 0; i < op->strings; i++) {
		p = memchr(p, 0, (size_t)(end - p));
		if (!p++)
			return false;
	}
	if (rq->head.opcode == FUSE_SETXATTR) {
		struct fuse_setxattr_in in = {0};
		if (rq->body_len < ch->setxattr_head)
			return false;
		memcpy(&in, rq->body, ch->setxattr_head);
		p = rq->body + ch->setxattr_head;
		p = memchr(p, 0, (size_t)(end - p));
		return p && in.size <= (size_t)(end - p - 1);
	}
	return true;
}

/* The name of an attribute that a user asks for. Where the kernel puts no slash, one marks what we
 * say to our own handlers; so a user's is refused, as XFS refuses a name without a namespace. So is the
 * one by which pyfuse3 would write every stack into the log. */
static bool is_reserved_name(const struct channel *ch, const struct request *rq,
			     const struct opcode_info *op)
{
	bool sets = rq->head.opcode == FUSE_SETXATTR;
	const char *name = (const char *)rq->body + (sets ? ch->setxattr_head : op->min_body);

	if (!op->attribute)
		return false;
	return name[0] == '/' || (sets && !strcmp(name, "fuse_stacktrace"));
}

/* ---- dispatch --------------------------------------------------------------------------------- */

static void open_here_or_relay(struct channel *ch, struct request *rq)
{
	struct fuse_open_in in;
	struct open_answer answer;
	struct unacked *unacked;

	memcpy(&in, rq->body, sizeof(in));
	if ((in.flags & (O_ACCMODE | O_TRUNC)) == O_RDONLY &&
	    nodes_repeat_open(&ch->nodes, rq->head.nodeid, first_unique(rq->head.unique),
			      rq->head.uid, &answer, &unacked)) {
		struct wire_open_out out = {.fh = answer.fh,
					    .open_flags = answer.open_flags,
					    .backing_id = answer.backing_id};
		if (answer_here(ch, rq, 0, &out, sizeof(out)))
			nodes_not_opened(&ch->nodes, rq->head.nodeid, false, unacked);
		else
			ledger_acknowledge(unacked);
		return;
	}
	relay(ch, rq);
}

/* Python has counted the lookup already when it primed the name; if the kernel does not take the
 * answer, it is there for the next one. */
static void lookup_here_or_relay(struct channel *ch, struct request *rq)
{
	const char *name = (const char *)rq->body;
	size_t len = strlen(name); /* well formed: it ends inside the body */
	struct fuse_entry_out entry;
	uint64_t evicted;

	if (!primed_take(&ch->primed, rq->head.nodeid, name, len, &entry)) {
		relay(ch, rq);
		return;
	}
	/* The kernel refuses it when the connection has ended: what is evicted is of no matter then. */
	if (answer_here(ch, rq, 0, &entry, sizeof(entry)))
		primed_add(&ch->primed, rq->head.nodeid, name, len, &entry, &evicted);
}

/* The reply is written before the lock is let go: whoever takes the lock, to be sure that no change of
 * mode or owner is under way here, can also be sure that the kernel has been told of all earlier ones. */
static void setattr_here_or_relay(struct channel *ch, struct request *rq)
{
	uint64_t nodeid = rq->head.nodeid;
	struct fuse_setattr_in in;
	struct stat st;
	bool done = false;

	memcpy(&in, rq->body, sizeof(in));
	if (!rq->resent && touch_may(&in)) {
		pthread_mutex_lock(&ch->touch.lock);
		/* what is open for writing changes unseen, and the kernel may not keep what we say */
		done = !nodes_is_volatile(&ch->nodes, nodeid) &&
		       touch_change(&ch->touch, nodeid, &in, &st);
		if (done) {
			struct fuse_attr_out out = {.attr_valid = FOREVER_S,
						    .attr = attr_of(&st, nodeid)};
			answer_here(ch, rq, 0, &out, sizeof(out));
		}
		pthread_mutex_unlock(&ch->touch.lock);
	}
	if (done)
		touch_ahead(&ch->touch);
	else
		relay(ch, rq);
}

/* Before each change of owner the kernel asks for the capabilities of the file, which hardly any has. */
static void getxattr_here_or_relay(struct channel *ch, struct request *rq)
{
	const char *name = (const char *)rq->body + sizeof(struct fuse_getxattr_in);
	bool lacks = false;

	if (!strcmp(name, "security.capability")) {
		pthread_mutex_lock(&ch->touch.lock);
		lacks = touch_lacks(&ch->touch, rq->head.nodeid, name);
		pthread_mutex_unlock(&ch->touch.lock);
	}
	if (lacks)
		answer_here(ch, rq, ENODATA, NULL, 0);
	else
		relay(ch, rq);
}

void serve_message(struct channel *ch, uint8_t *message, size_t len, uint8_t *scratch)
{
	struct request rq = {.start_ns = now_ns(), .scratch = scratch};
	const struct opcode_info *op;

	if (len < sizeof(rq.head))
		return; /* cannot even be answered */
	memcpy(&rq.head, message, sizeof(rq.head));
	rq.body = message + sizeof(rq.head);
	rq.body_len = (uint32_t)(len - sizeof(rq.head));
	rq.resent = rq.head.unique & WIRE_UNIQUE_RESEND;
	op = opcode_info(rq.head.opcode);
	counters_came(ch->counters, rq.head.opcode);

	if (rq.head.len != len || !well_formed(ch, &rq, op)) {
		if (op->route != ROUTE_RELAY_MUTE && op->route != ROUTE_DROP)
			answer_here(ch, &rq, EINVAL, NULL, 0);
		return;
	}
	if (is_reserved_name(ch, &rq, op)) {
		answer_here(ch, &rq, EOPNOTSUPP, NULL, 0);
		return;
	}
	if (rq.resent && op->route != ROUTE_HERE &&
	    ledger_came_again(ch->ledger, first_unique(rq.head.unique)) > MAX_AGAIN) {
		answer_here(ch, &rq, EIO, NULL, 0);
		return;
	}
	if (rq.resent && op->opens) { /* the daemon before may have counted it */
		struct unacked *none;
		nodes_resent(&ch->nodes, first_unique(rq.head.unique), &none);
	}
	switch ((enum route)op->route) {
	case ROUTE_REFUSE:
		answer_here(ch, &rq, op->refusal, NULL, 0);
		break;
	case ROUTE_RELAY:
		relay(ch, &rq);
		break;
	case ROUTE_RELAY_MUTE:
		relay_mute(ch, &rq);
		break;
	case ROUTE_OPEN:
		open_here_or_relay(ch, &rq);
		break;
	case ROUTE_LOOKUP:
		lookup_here_or_relay(ch, &rq);
		break;
	case ROUTE_SETATTR:
		setattr_here_or_relay(ch, &rq);
		break;
	case ROUTE_GETXATTR:
		getxattr_here_or_relay(ch, &rq);
		break;
	case ROUTE_HERE:
		dataplane_answer(ch, &rq);
		break;
	case ROUTE_FSYNC:
		/* Nobody has written to a SHARED file, but its attributes may be the copy's own by
		 * now; Python knows which file has them. */
		if (nodes_is_shared(&ch->nodes, rq.head.nodeid))
			relay(ch, &rq);
		else
			dataplane_answer(ch, &rq);
		break;
	case ROUTE_DROP:
		break;
	}
}
