/*
 * life.c - making, closing and freeing a channel
 *
 * Knows the order in which things may go. Closing must not wait for anything that only the closed
 * parts could bring about:
 *
 * 1. no call from outside uses the channel any more (`life`);
 * 2. the socket is shut down: a worker that would relay answers EIO instead, and what was relayed
 *    and has no reply is answered with EIO here. From now on every request is answered soon;
 * 3. the notifier is joined. It may be waiting for a directory's lock, which is free as soon as
 *    its holder has been answered, and the workers still see to that;
 * 4. the workers are woken and joined (workers.c says how);
 * 5. backing ids, descriptors and at last /dev/fuse are closed. If no one else holds that, the
 *    kernel ends the connection then.
 */
#include "life.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kernel.h"
#include "workers.h"

/*
 * Room for what may lie in the socket at once. Towards libfuse it lets workers go on reading while
 * Python is busy. From libfuse it is a must: the thread that writes replies is the one that drains
 * them, and up to 99 tasks may each write a listing of 64 KiB before it comes to that.
 */
#define SOCKET_BUFFER (16 * 1024 * 1024)

static void set_buffer(int fd)
{
	int size = SOCKET_BUFFER;

	/* Without CAP_NET_ADMIN the system's limit holds, which is enough for tests. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

/* How many descriptors the files of users may take. What is left is for the directories of the layers, of
 * which Python keeps an eighth of the limit and no more than 2048, for those that touch.c has, and for
 * what every request opens and closes again. */
static uint32_t descriptors_for_users(void)
{
	struct rlimit limit;
	rlim_t reserve;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur > INT32_MAX)
		return INT32_MAX;
	reserve = (limit.rlim_cur / 8 < 2048 ? limit.rlim_cur / 8 : 2048) + 2 * TOUCH_MAX_DIRECTORIES;
	if (reserve > limit.rlim_cur / 2)
		reserve = limit.rlim_cur / 2;
	return (uint32_t)(limit.rlim_cur - reserve);
}

struct channel *channel_new(bool passthrough, uint64_t root_ino, uint32_t max_cached,
			    const struct backing_ops *ops, int ledger_fd)
{
	struct channel *ch = calloc(1, sizeof(*ch));
	pthread_rwlockattr_t attr;
	uint32_t max_held = descriptors_for_users();
	int pair[2] = {-1, -1};
	int err = ENOMEM;

	if (!ch) {
		if (ledger_fd >= 0)
			close(ledger_fd);
		return NULL;
	}
	ch->want_passthrough = passthrough;
	ch->root_ino = root_ino;
	ch->dev_fd = ch->relay_fd = ch->daemon_fd = ch->closed_fd = -1;
	/* The default lets new readers pass a waiting writer: callers that come one upon the other
	 * would put off channel_close() for as long as they like. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&ch->life, &attr);
	pthread_rwlockattr_destroy(&attr);
	pthread_mutex_init(&ch->draining, NULL);
	pthread_mutex_init(&ch->flushing, NULL);
	primed_init(&ch->primed);
	touch_init(&ch->touch, &ch->primed);
	ahead_init(&ch->ahead);
	served_init(&ch->served);
	pthread_mutex_init(&ch->pool.lock, NULL);
	pthread_cond_init(&ch->pool.changed, NULL);
	pthread_mutex_init(&ch->notifier.lock, NULL);
	pthread_cond_init(&ch->notifier.changed, NULL);
	/* mmap: of 80 KiB, only what replies really need becomes resident */
	ch->drain_buffer = mmap(NULL, RELAY_MAX, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ch->drain_buffer == MAP_FAILED)
		ch->drain_buffer = NULL;
	ch->ledger = ledger_fd < 0 ? ledger_new() : ledger_open(ledger_fd);
	if (!ch->ledger) {
		err = errno;
		goto fail;
	}
	ch->touch.ledger = ch->ledger;
	ch->counters = ledger_counters(ch->ledger);
	ch->tally = ledger_tally(ch->ledger);
	ch->touch.tally = ch->tally;
	if (!ch->drain_buffer ||
	    nodes_init(&ch->nodes, max_cached < max_held ? max_cached : max_held, max_held, ops,
		       ch->ledger) ||
	    pending_init(&ch->pending))
		goto fail;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		err = errno;
		goto fail;
	}
	ch->relay_fd = pair[0];
	ch->daemon_fd = pair[1];
	set_buffer(pair[0]);
	set_buffer(pair[1]);
	ch->closed_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ch->closed_fd < 0) {
		err = errno;
		goto fail;
	}
	return ch;

fail:
	channel_free(ch);
	errno = err;
	return NULL;
}

bool channel_enter(struct channel *ch)
{
	pthread_rwlock_rdlock(&ch->life);
	if (!ch->closed)
		return true;
	pthread_rwlock_unlock(&ch->life);
	return false;
}

void channel_leave(struct channel *ch)
{
	pthread_rwlock_unlock(&ch->life);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void channel_close(struct channel *ch)
{
	struct pending p;
	bool again;

	pthread_rwlock_wrlock(&ch->life);
	again = ch->closed;
	ch->closed = true;
	pthread_rwlock_unlock(&ch->life);
	if (again)
		return;

	if (ch->relay_fd >= 0)
		shutdown(ch->relay_fd, SHUT_RDWR);
	while (pending_any(&ch->pending) && pending_take_any(&ch->pending, &p)) {
		/* INIT was answered by the channel itself */
		if (p.opcode != FUSE_INIT)
			kernel_answer(ch, p.unique, EIO, NULL, 0);
	}
	notifier_stop(ch);
	workers_stop(ch);

	ahead_destroy(&ch->ahead);
	touch_destroy(&ch->touch);
	nodes_destroy(&ch->nodes);
	close_fd(&ch->dev_fd);
	close_fd(&ch->relay_fd);
	if (ch->closed_fd >= 0)
		kernel_gone(ch, 0);
}

void channel_free(struct channel *ch)
{
	channel_close(ch);
	pending_destroy(&ch->pending);
	primed_destroy(&ch->primed);
	served_destroy(&ch->served);
	ledger_free(ch->ledger);
	/* A caller that waits for closed_fd, or has not taken daemon_fd yet, has a reference to the
	 * object, so these two stay open until here. Once libfuse
	 * has answered INIT, its end is libfuse's to close. */
	if (!atomic_load(&ch->libfuse_alive))
		close_fd(&ch->daemon_fd);
	close_fd(&ch->closed_fd);
	if (ch->drain_buffer)
		munmap(ch->drain_buffer, RELAY_MAX);
	free(ch->mountpoint);
	pthread_cond_destroy(&ch->notifier.changed);
	pthread_mutex_destroy(&ch->notifier.lock);
	pthread_cond_destroy(&ch->pool.changed);
	pthread_mutex_destroy(&ch->pool.lock);
	pthread_mutex_destroy(&ch->touch.told_lock);
	pthread_mutex_destroy(&ch->touch.lock);
	pthread_mutex_destroy(&ch->draining);
	pthread_mutex_destroy(&ch->flushing);
	pthread_rwlock_destroy(&ch->life);
	free(ch);
}
