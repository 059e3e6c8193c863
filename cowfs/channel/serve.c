/*
 * serve.c - worker threads: read a request, have it answered or relay it
 *
 * A worker blocks in read(/dev/fuse) and handles what it read to the end, so a slow disk holds up
 * one worker and nobody else: there is always another one reading, up to MAX_WORKERS. The kernel
 * wakes one reader per request.
 *
 * This room knows which requests go where (opcodes.h has the table) and what has to be changed in
 * those that are relayed: libfuse and pyfuse3 trust their peer, so nothing malformed, nothing
 * larger than a socket message, and no file handle of theirs goes through. It does not know how
 * a request is answered.
 *
 * Stopping: a worker in read() is woken by a signal whose handler does nothing; without SA_RESTART
 * the read returns EINTR and the worker sees pool.stopping. The signal can come just before the
 * read, so it is sent again every few milliseconds until the worker is gone. (The alternatives:
 * poll() with an eventfd costs a system call for every request, and wakes every worker for each;
 * closing the descriptor does not wake its readers; aborting the connection would need its number
 * and a mounted fusectl, and could not be done by a daemon that means to hand the connection over.)
 * Only workers that wait for a request get the signal, so no disk I/O is ever interrupted by it.
 *
 * Locking: pool.lock guards who runs and who waits; it is not held while handling a request.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "attr.h"
#include "channel.h"
#include "words.h"

/* More workers than this do not wait for requests; who finishes as one too many ends. */
#define MAX_IDLE 4

/* Deep enough for the deepest call here by far, and for what sanitizers add. */
#define WORKER_STACK (256 * 1024)

/* The payload of a WRITE, and what is read for a READ, begins on a page; the rest of a request
 * stands before it. */
#define DATA_OFFSET 4096
#define REQUEST_OFFSET (DATA_OFFSET - WIRE_WRITE_PREFIX)
#define BUFFER_SIZE (DATA_OFFSET + WIRE_MAX_DATA + 4096)
#define REQUEST_MAX (BUFFER_SIZE - REQUEST_OFFSET)

/* A request under which so many daemons have ended is taken for the reason, and answered with EIO. More
 * than ends by chance, or by somebody's will, while one request is under way. */
#define MAX_AGAIN 16

/* Bytes that marking a request adds at most: the number of an exchange, and two slashes. */
#define MAX_MARK 24

#define WAKE_SIGNAL (SIGRTMIN + 9)
#define WAKE_AGAIN_NS (5 * 1000 * 1000)

struct worker {
	struct channel *ch;
	pthread_t thread;
	uint8_t *buffer;
	bool idle;	      /* pool.lock */
	struct worker *next;  /* pool.lock */
};

/* ---- relaying -------------------------------------------------------------------------------- */

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
static bool is_reserved_name(const struct channel *ch, const struct request *rq)
{
	const char *name = (const char *)rq->body;

	switch (rq->head.opcode) {
	case FUSE_SETXATTR:
		name += ch->setxattr_head;
		return name[0] == '/' || !strcmp(name, "fuse_stacktrace");
	case FUSE_GETXATTR:
		return rq->body[sizeof(struct fuse_getxattr_in)] == '/';
	case FUSE_REMOVEXATTR:
		return rq->body[0] == '/';
	default:
		return false;
	}
}

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

/* Python knows no file handle but the node id, and has it where the kernel puts one: ours means nothing
 * there, and a directory has none, because the kernel opened it by itself. TMPFILE has the layout of
 * CREATE and the name "/", by which pyfuse3's handler knows it. */
static void adjust(const struct channel *ch, struct request *rq)
{
	if (rq->head.opcode == FUSE_SETXATTR) {
		shorten_setxattr(ch, rq);
	} else if (rq->head.opcode == FUSE_STATX) {
		ask_for_statx(rq);
	} else if (rq->head.opcode == FUSE_TMPFILE) {
		rq->head.opcode = FUSE_CREATE;
	} else if (rq->head.opcode == FUSE_READDIRPLUS) {
		struct fuse_read_in in;
		memcpy(&in, rq->body, sizeof(in));
		in.fh = rq->head.nodeid;
		if (in.size > READDIR_MAX)
			in.size = READDIR_MAX;
		memcpy(rq->body, &in, sizeof(in));
	} else if (rq->head.opcode == FUSE_FSYNCDIR || rq->head.opcode == FUSE_FSYNC) {
		struct fuse_fsync_in in;
		memcpy(&in, rq->body, sizeof(in));
		in.fh = rq->head.nodeid;
		memcpy(rq->body, &in, sizeof(in));
	}
}

/* Where the names of a request begin that must not be done twice; 0: it may be. */
static uint32_t names_of_a_change(const struct request *rq)
{
	switch (rq->head.opcode) {
	case FUSE_MKNOD:
		return sizeof(struct fuse_mknod_in);
	case FUSE_MKDIR:
		return sizeof(struct fuse_mkdir_in);
	case FUSE_LINK:
		return sizeof(struct fuse_link_in);
	case FUSE_CREATE:
		return sizeof(struct fuse_create_in);
	case FUSE_RENAME:
		return sizeof(struct fuse_rename_in);
	case FUSE_RENAME2:
		return sizeof(struct fuse_rename2_in);
	case FUSE_SETXATTR:
		return FUSE_COMPAT_SETXATTR_IN_SIZE;
	default: /* SYMLINK, UNLINK, RMDIR, REMOVEXATTR: nothing stands before */
		return 0;
	}
}

static bool is_change(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
	case FUSE_CREATE:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
		return true;
	default:
		return false;
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
 * name of an attribute, where one has a meaning. TMPFILE makes no name, and is not marked. */
static void mark_resent(struct request *rq)
{
	uint32_t at = names_of_a_change(rq);

	switch (rq->head.opcode) {
	case FUSE_SETXATTR:
		mark_setxattr(rq, at);
		break;
	case FUSE_REMOVEXATTR:
		insert(rq, at, WORD_ATTRIBUTE_AGAIN);
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		insert(rq, at, WORD_AGAIN);
		insert(rq, at + (uint32_t)strlen((const char *)rq->body + at) + 1, WORD_AGAIN);
		break;
	default:
		insert(rq, at, WORD_AGAIN);
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

static void relay(struct channel *ch, struct request *rq)
{
	struct iovec iov[2];
	struct pending p = {.unique = rq->head.unique,
			    .nodeid = rq->head.nodeid,
			    .opcode = rq->head.opcode,
			    .start_ns = rq->start_ns};
	uint32_t flags;

	if (rq->head.opcode == FUSE_OPEN || rq->head.opcode == FUSE_CREATE ||
	    rq->head.opcode == FUSE_TMPFILE) {
		memcpy(&flags, rq->body, sizeof(flags)); /* the first word of all three */
		p.writing = (flags & O_ACCMODE) != O_RDONLY;
	}
	adjust(ch, rq);
	if (is_change(p.opcode) && rq->head.len + MAX_MARK <= RELAY_MAX) {
		if (rq->resent)
			mark_resent(rq);
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
static void relay_mute(struct channel *ch, struct request *rq)
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

/* ---- dispatch --------------------------------------------------------------------------------- */

static void open_here_or_relay(struct channel *ch, struct request *rq)
{
	struct fuse_open_in in;
	struct open_answer answer;
	struct ledger_doubt *doubt;

	memcpy(&in, rq->body, sizeof(in));
	if ((in.flags & (O_ACCMODE | O_TRUNC)) == O_RDONLY &&
	    nodes_repeat_open(&ch->nodes, rq->head.nodeid, first_unique(rq->head.unique),
			      rq->head.uid, &answer, &doubt)) {
		struct wire_open_out out = {.fh = answer.fh,
					    .open_flags = answer.open_flags,
					    .backing_id = answer.backing_id};
		if (answer_here(ch, rq, 0, &out, sizeof(out)))
			nodes_not_opened(&ch->nodes, rq->head.nodeid, false, doubt);
		else
			ledger_settle(doubt);
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

/* The reply goes out before the lock does: whoever has it, and with it knows that no change of mode or
 * owner is under way here, knows too that the kernel has been told of all before. */
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

/* Requests that may have been counted as an open by the daemon before. */
static bool takes_back_an_open(uint32_t opcode)
{
	return opcode == FUSE_OPEN || opcode == FUSE_CREATE || opcode == FUSE_TMPFILE;
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
	if (is_reserved_name(ch, &rq)) {
		answer_here(ch, &rq, EOPNOTSUPP, NULL, 0);
		return;
	}
	if (rq.resent && op->route != ROUTE_HERE &&
	    ledger_came_again(ch->ledger, first_unique(rq.head.unique)) > MAX_AGAIN) {
		answer_here(ch, &rq, EIO, NULL, 0);
		return;
	}
	if (rq.resent && takes_back_an_open(rq.head.opcode)) {
		struct ledger_doubt *none;
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

/* ---- the pool ---------------------------------------------------------------------------------- */

static void *worker_main(void *arg);

/* Called with the lock. */
static void join_finished(struct worker_pool *pool)
{
	while (pool->finished) {
		struct worker *w = pool->finished;
		pool->finished = w->next;
		pthread_join(w->thread, NULL); /* it has let the lock go for the last time */
		free(w);
	}
}

/* A thread that is being killed may still take a request out of the kernel's queue, and a page of its
 * buffer that is not there then cannot be had any more: the kernel fails the request with EIO, and no
 * next daemon gets it. So all that a request can need is there before. What is passed through comes
 * with no payload but that of a name or an attribute, and holds less memory. */
static void touch_pages(const struct channel *ch, uint8_t *buffer)
{
	memset(buffer, 0, ch->passthrough ? DATA_OFFSET + RELAY_MAX : BUFFER_SIZE);
}

/* Called with the lock. 0 or -errno. */
static int spawn(struct channel *ch)
{
	struct worker_pool *pool = &ch->pool;
	struct worker *w = calloc(1, sizeof(*w));
	sigset_t mask, before;
	pthread_attr_t attr;
	int err;

	if (!w)
		return -ENOMEM;
	w->ch = ch;
	w->idle = true;
	w->buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (w->buffer == MAP_FAILED) {
		free(w);
		return -ENOMEM;
	}
	touch_pages(ch, w->buffer);
	/* Every other signal is for Python's threads. */
	sigfillset(&mask);
	sigdelset(&mask, WAKE_SIGNAL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, WORKER_STACK);
	pthread_sigmask(SIG_SETMASK, &mask, &before);
	err = pthread_create(&w->thread, &attr, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (err) {
		munmap(w->buffer, BUFFER_SIZE);
		free(w);
		return -err;
	}
	w->next = pool->running;
	pool->running = w;
	pool->total++;
	pool->idle++;
	return 0;
}

/* A request came for this worker: see to it that somebody reads the next one. */
static void become_busy(struct worker *w)
{
	struct worker_pool *pool = &w->ch->pool;

	pthread_mutex_lock(&pool->lock);
	w->idle = false;
	pool->idle--;
	if (pool->idle == 0 && pool->total < MAX_WORKERS && !atomic_load(&pool->stopping)) {
		join_finished(pool);
		spawn(w->ch); /* if there is no thread to be had, this one comes back */
	}
	pthread_mutex_unlock(&pool->lock);
}

/* false: enough others wait already. */
static bool become_idle(struct worker *w)
{
	struct worker_pool *pool = &w->ch->pool;
	bool stay;

	pthread_mutex_lock(&pool->lock);
	stay = pool->idle < MAX_IDLE;
	if (stay) {
		w->idle = true;
		pool->idle++;
	}
	pthread_mutex_unlock(&pool->lock);
	return stay;
}

static void finish(struct worker *w)
{
	struct worker_pool *pool = &w->ch->pool;
	struct worker **link = &pool->running;

	munmap(w->buffer, BUFFER_SIZE);
	pthread_mutex_lock(&pool->lock);
	while (*link != w)
		link = &(*link)->next;
	*link = w->next;
	w->next = pool->finished;
	pool->finished = w;
	pool->total--;
	if (w->idle)
		pool->idle--;
	w->idle = false;
	pthread_cond_signal(&pool->changed);
	pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct channel *ch = w->ch;
	uint8_t *request = w->buffer + REQUEST_OFFSET;

	while (!atomic_load(&ch->pool.stopping)) {
		ssize_t n = read(ch->dev_fd, request, REQUEST_MAX);

		/* ENOENT: the caller gave up while its request was being copied to us */
		if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
			continue;
		if (n <= 0) { /* 0 is nothing that the kernel says */
			kernel_gone(ch, n < 0 ? errno : EIO);
			break;
		}
		become_busy(w);
		serve_message(ch, request, (size_t)n, w->buffer + DATA_OFFSET);
		if (!become_idle(w))
			break;
	}
	finish(w);
	return NULL;
}

static void wake(int signal)
{
	(void)signal;
}

int serve_start(struct channel *ch)
{
	struct sigaction action = {.sa_handler = wake};
	int err;

	if (sigaction(WAKE_SIGNAL, &action, NULL) < 0)
		return -errno;
	pthread_mutex_lock(&ch->pool.lock);
	err = spawn(ch);
	pthread_mutex_unlock(&ch->pool.lock);
	return err;
}

void serve_stop(struct channel *ch)
{
	struct worker_pool *pool = &ch->pool;

	atomic_store(&pool->stopping, true);
	pthread_mutex_lock(&pool->lock);
	while (pool->running) {
		struct timespec until;

		for (struct worker *w = pool->running; w; w = w->next)
			if (w->idle)
				pthread_kill(w->thread, WAKE_SIGNAL);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += WAKE_AGAIN_NS;
		if (until.tv_nsec >= 1000000000) {
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		pthread_cond_timedwait(&pool->changed, &pool->lock, &until);
	}
	join_finished(pool);
	pthread_mutex_unlock(&pool->lock);
}
