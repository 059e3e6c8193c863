/*
 * workers.c - the threads that read requests
 *
 * A worker blocks in read(/dev/fuse) and handles what it read to the end, so a slow disk holds up
 * one worker and nobody else: there is always another one reading, up to MAX_WORKERS. The kernel
 * wakes one reader per request. What becomes of a request, serve.c knows.
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
#include "workers.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"
#include "serve.h"

#define MAX_WORKERS 32

/* More workers than this do not wait for requests; who finishes as one too many ends. */
#define MAX_IDLE 4

/* Deep enough for the deepest call here by far, and for what sanitizers add. */
#define WORKER_STACK (256 * 1024)

/* The payload of a WRITE, and what is read for a READ, begins on a page; the rest of a request
 * stands before it. */
#define DATA_OFFSET 4096
#define REQUEST_OFFSET (DATA_OFFSET - WIRE_WRITE_PREFIX)
#define DATA_END 4096 /* behind the payload */

#define WAKE_SIGNAL (SIGRTMIN + 9)
#define WAKE_AGAIN_NS (5 * 1000 * 1000)

struct worker {
	struct channel *ch;
	pthread_t thread;
	uint8_t *buffer;
	bool idle;	      /* pool.lock */
	struct worker *next;  /* pool.lock */
};

static void *worker_main(void *arg);

/* What a request may bring. The kernel wants room for its largest WRITE before it gives us any. */
static size_t request_size(const struct channel *ch)
{
	return DATA_OFFSET + ch->max_write + DATA_END;
}

static size_t buffer_size(const struct channel *ch)
{
	size_t largest = ch->max_read > ch->max_write ? ch->max_read : ch->max_write;

	return DATA_OFFSET + largest + DATA_END;
}

static void join_finished_locked(struct worker_pool *pool)
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
	memset(buffer, 0, ch->passthrough ? DATA_OFFSET + RELAY_MAX : request_size(ch));
}

/* 0 or -errno. */
static int spawn_locked(struct channel *ch)
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
	w->buffer = mmap(NULL, buffer_size(ch), PROT_READ | PROT_WRITE,
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
		munmap(w->buffer, buffer_size(ch));
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
		join_finished_locked(pool);
		spawn_locked(w->ch); /* if there is no thread to be had, this one comes back */
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

	munmap(w->buffer, buffer_size(w->ch));
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
	size_t room = request_size(ch) - REQUEST_OFFSET;

	while (!atomic_load(&ch->pool.stopping)) {
		ssize_t n = read(ch->dev_fd, request, room);

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

int workers_start(struct channel *ch)
{
	struct sigaction action = {.sa_handler = wake};
	int err;

	if (sigaction(WAKE_SIGNAL, &action, NULL) < 0)
		return -errno;
	pthread_mutex_lock(&ch->pool.lock);
	err = spawn_locked(ch);
	pthread_mutex_unlock(&ch->pool.lock);
	return err;
}

void workers_stop(struct channel *ch)
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
	join_finished_locked(pool);
	pthread_mutex_unlock(&pool->lock);
}
