/*
 * kernel.c - the writing side of /dev/fuse: replies and notifications
 *
 * Knows what a message to the kernel looks like, and which of them may block. A reply never does.
 * A notification does: INVAL_ENTRY and DELETE take the lock of the directory, and the process
 * that holds it may be waiting for a request that only the caller can answer. So those are queued
 * for a thread of their own, which nobody waits for, except notifier_stop(), at a moment when
 * every request is still answered.
 *
 * It does not know what the messages say about nodes or names.
 *
 * Locking: notifier.lock guards the queue; no lock is held while writing (the kernel takes a
 * message in one call, messages cannot mix).
 */
#include "kernel.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int kernel_write(struct channel *ch, const struct iovec *iov, int count)
{
	ssize_t n;

	do
		n = writev(ch->dev_fd, iov, count);
	while (n < 0 && (errno == EINTR || errno == EAGAIN));
	return n < 0 ? -errno : 0;
}

int kernel_answer(struct channel *ch, uint64_t unique, int error, const void *body, size_t len)
{
	struct fuse_out_header head = {.unique = unique};
	struct iovec iov[2] = {{&head, sizeof(head)}, {(void *)(uintptr_t)body, len}};
	int err;

	if (error)
		len = 0;
	head.error = -error;
	head.len = (uint32_t)(sizeof(head) + len);
	err = kernel_write(ch, iov, len ? 2 : 1);
	if (err && err != -ENOENT && err != -ENODEV && err != -EPIPE) {
		/* The kernel does not like the reply: the caller must not hang for it. */
		head.error = -EIO;
		head.len = sizeof(head);
		kernel_write(ch, iov, 1);
	}
	return err;
}

int answer_here(struct channel *ch, const struct request *rq, int error, const void *body,
		size_t len)
{
	int err;

	counters_answer(ch->counters, rq->head.opcode, error != 0, true);
	err = kernel_answer(ch, rq->head.unique, error, body, len);
	counters_answered(ch->counters, rq->head.opcode, rq->start_ns);
	return err;
}

void kernel_gone(struct channel *ch, int err)
{
	uint64_t one = 1;
	ssize_t n;

	/* ENODEV is what fuse(4) has for the end of a connection; ECONNABORTED, which the kernel says only
	 * if INIT asks for it, is the other. */
	if (err && err != ENODEV && err != ECONNABORTED)
		atomic_store(&ch->read_error, err);
	n = write(ch->closed_fd, &one, sizeof(one));
	(void)n; /* EAGAIN: readable already */
}

/* ---- notifications -------------------------------------------------------------------------- */

struct notice {
	struct notice *next;
	size_t len;
	uint8_t message[];
};

static void *notifier_main(void *arg)
{
	struct channel *ch = arg;
	struct notifier *q = &ch->notifier;

	pthread_mutex_lock(&q->lock);
	for (;;) {
		struct notice *n = q->first;
		struct iovec iov;

		if (q->stopping)
			break;
		if (!n) {
			pthread_cond_wait(&q->changed, &q->lock);
			continue;
		}
		q->first = n->next;
		if (!q->first)
			q->last = NULL;
		pthread_mutex_unlock(&q->lock);
		/* An error (ENOENT: the kernel has no such entry) leaves nothing to do. */
		iov = (struct iovec){n->message, n->len};
		kernel_write(ch, &iov, 1);
		free(n);
		pthread_mutex_lock(&q->lock);
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

int notifier_start(struct channel *ch)
{
	sigset_t all, before;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(&ch->notifier.thread, NULL, notifier_main, ch);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	ch->notifier.running = !err;
	return -err;
}

void notifier_stop(struct channel *ch)
{
	struct notifier *q = &ch->notifier;

	pthread_mutex_lock(&q->lock);
	q->stopping = true;
	pthread_cond_signal(&q->changed);
	pthread_mutex_unlock(&q->lock);
	if (q->running)
		pthread_join(q->thread, NULL);
	q->running = false;
	while (q->first) {
		struct notice *n = q->first;
		q->first = n->next;
		free(n);
	}
	q->last = NULL;
}

int notify_later(struct channel *ch, const void *message, size_t len)
{
	struct notifier *q = &ch->notifier;
	struct notice *n = malloc(sizeof(*n) + len);

	if (!n)
		return -ENOMEM;
	n->next = NULL;
	n->len = len;
	memcpy(n->message, message, len);
	pthread_mutex_lock(&q->lock);
	if (q->last)
		q->last->next = n;
	else
		q->first = n;
	q->last = n;
	pthread_cond_signal(&q->changed);
	pthread_mutex_unlock(&q->lock);
	return 0;
}

int notify_inval_entry(struct channel *ch, uint64_t parent, const char *name, size_t len)
{
	struct {
		struct fuse_out_header head;
		struct fuse_notify_inval_entry_out out;
		char name[NAME_MAX + 1];
	} m = {0};
	size_t total = offsetof(__typeof__(m), name) + len + 1;

	if (len == 0 || len > NAME_MAX || memchr(name, 0, len) || memchr(name, '/', len))
		return -EINVAL;
	m.head.len = (uint32_t)total;
	m.head.error = FUSE_NOTIFY_INVAL_ENTRY;
	m.out.parent = parent;
	m.out.namelen = (uint32_t)len;
	memcpy(m.name, name, len);
	return notify_later(ch, &m, total);
}

struct inval_inode {
	struct fuse_out_header head;
	struct fuse_notify_inval_inode_out out;
};

/* offset -1: the attributes alone; size 0: everything from offset on. */
static struct inval_inode inval_inode(uint64_t nodeid, int64_t offset, int64_t size)
{
	return (struct inval_inode){
		.head = {.len = sizeof(struct inval_inode), .error = FUSE_NOTIFY_INVAL_INODE},
		.out = {.ino = nodeid, .off = offset, .len = size},
	};
}

static int send_inval_inode(struct channel *ch, uint64_t nodeid, int64_t offset)
{
	struct inval_inode m = inval_inode(nodeid, offset, 0);
	struct iovec iov = {&m, sizeof(m)};
	int err = kernel_write(ch, &iov, 1);

	return err == -ENOENT ? 0 : err;
}

int notify_inval_attr(struct channel *ch, uint64_t nodeid)
{
	return send_inval_inode(ch, nodeid, -1);
}

int notify_inval_data(struct channel *ch, uint64_t nodeid)
{
	return send_inval_inode(ch, nodeid, 0);
}

int notify_resend(struct channel *ch)
{
	struct fuse_out_header head = {.len = sizeof(head), .error = WIRE_NOTIFY_RESEND};
	struct iovec iov = {&head, sizeof(head)};

	return kernel_write(ch, &iov, 1);
}

int notify_inval_pages(struct channel *ch, uint64_t nodeid, uint64_t offset, uint32_t size)
{
	struct inval_inode m = inval_inode(nodeid, (int64_t)offset, size);

	return notify_later(ch, &m, sizeof(m));
}
