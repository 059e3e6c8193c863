/*
 * stock.c - clones that are made before anybody asks for them
 */
#include "stock.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void stock_init(struct stock *s)
{
	*s = (struct stock){.oldest = 0};
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->made, NULL);
}

/* With the lock, from here on. The descriptor is the caller's afterwards, -1: there was none. */
static int clear(struct stock_clone *clone)
{
	int fd = clone->state == STOCK_READY ? clone->fd : -1;

	free(clone->path);
	*clone = (struct stock_clone){.state = STOCK_NONE};
	return fd;
}

void stock_destroy(struct stock *s)
{
	for (int i = 0; i < STOCK_CLONES; i++) {
		int fd = clear(&s->clones[i]);

		if (fd >= 0)
			close(fd);
	}
	pthread_cond_destroy(&s->made);
	pthread_mutex_destroy(&s->lock);
}

static struct stock_clone *find(struct stock *s, uint64_t nodeid)
{
	for (int i = 0; i < STOCK_CLONES; i++)
		if (s->clones[i].state != STOCK_NONE && s->clones[i].nodeid == nodeid)
			return &s->clones[i];
	return NULL;
}

void stock_plan(struct stock *s, uint64_t nodeid, const char *path)
{
	struct stock_clone *clone;
	char *own = strdup(path);
	int fd = -1;

	pthread_mutex_lock(&s->lock);
	clone = &s->clones[s->oldest];
	if (own && !find(s, nodeid) && clone->state != STOCK_PLANNED &&
	    clone->state != STOCK_MAKING) {
		fd = clear(clone);
		*clone = (struct stock_clone){
			.state = STOCK_PLANNED, .nodeid = nodeid, .path = own};
		own = NULL;
		s->oldest = (s->oldest + 1) % STOCK_CLONES;
		s->used = true;
	}
	pthread_mutex_unlock(&s->lock);
	free(own);
	if (fd >= 0)
		close(fd);
}

struct stock_clone *stock_begin(struct stock *s)
{
	struct stock_clone *clone = NULL;

	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < STOCK_CLONES && !clone; i++) {
		clone = &s->clones[(s->oldest + i) % STOCK_CLONES];
		if (clone->state == STOCK_PLANNED)
			clone->state = STOCK_MAKING;
		else
			clone = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	return clone;
}

void stock_made(struct stock *s, struct stock_clone *clone, int fd)
{
	pthread_mutex_lock(&s->lock);
	if (fd < 0) {
		clear(clone);
	} else {
		clone->fd = fd;
		clone->state = STOCK_READY;
	}
	pthread_cond_broadcast(&s->made);
	pthread_mutex_unlock(&s->lock);
}

bool stock_is_ready(struct stock *s, uint64_t nodeid)
{
	const struct stock_clone *clone;
	bool ready;

	pthread_mutex_lock(&s->lock);
	clone = find(s, nodeid);
	ready = clone && clone->state == STOCK_READY;
	pthread_mutex_unlock(&s->lock);
	return ready;
}

int stock_take(struct stock *s, uint64_t nodeid)
{
	struct stock_clone *clone;
	int fd = -1;

	pthread_mutex_lock(&s->lock);
	while ((clone = find(s, nodeid)) && clone->state == STOCK_MAKING)
		pthread_cond_wait(&s->made, &s->lock);
	if (clone) {
		fd = clear(clone);
		s->used = true;
	}
	pthread_mutex_unlock(&s->lock);
	return fd;
}

void stock_drop_idle(struct stock *s)
{
	int idle[STOCK_CLONES];
	int count = 0;

	pthread_mutex_lock(&s->lock);
	for (int i = 0; i < STOCK_CLONES && !s->used; i++)
		if (s->clones[i].state == STOCK_READY)
			idle[count++] = clear(&s->clones[i]);
	s->used = false;
	pthread_mutex_unlock(&s->lock);
	while (count > 0)
		close(idle[--count]);
}
