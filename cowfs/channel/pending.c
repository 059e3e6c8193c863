/*
 * pending.c - requests that were relayed and not answered yet
 *
 * A chained hash table by unique. Knows neither sockets nor opcodes. Entries are recycled, so
 * that a busy mount does not call malloc for every request; there are never more of them than
 * requests were under way at one time.
 *
 * Locking: one mutex, held for a few instructions, never together with another lock.
 */
#include "pending.h"

#include <errno.h>
#include <stdlib.h>

#define FIRST_BUCKETS 64u

int pending_init(struct pending_table *t)
{
	*t = (struct pending_table){.mask = FIRST_BUCKETS - 1};
	t->buckets = calloc(FIRST_BUCKETS, sizeof(*t->buckets));
	if (!t->buckets)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	return 0;
}

void pending_destroy(struct pending_table *t)
{
	struct pending dropped;

	if (!t->buckets)
		return;
	while (pending_take_any(t, &dropped))
		;
	while (t->unused) {
		struct pending *p = t->unused;
		t->unused = p->next;
		free(p);
	}
	free(t->buckets);
	t->buckets = NULL;
	pthread_mutex_destroy(&t->lock);
}

/* The kernel counts unique up by two; bit 0 marks interrupts and bit 63 resent requests. */
static uint32_t bucket_of(const struct pending_table *t, uint64_t unique)
{
	return (uint32_t)((unique >> 1) ^ (unique >> 63)) & t->mask;
}

/* Failing to grow is no error: chains get longer. */
static void grow_locked(struct pending_table *t)
{
	uint32_t old_mask = t->mask;
	struct pending **old = t->buckets;
	struct pending **bigger = calloc(2 * ((size_t)old_mask + 1), sizeof(*bigger));

	if (!bigger)
		return;
	t->buckets = bigger;
	t->mask = 2 * old_mask + 1;
	for (uint32_t i = 0; i <= old_mask; i++) {
		while (old[i]) {
			struct pending *p = old[i];
			struct pending **head = &t->buckets[bucket_of(t, p->unique)];
			old[i] = p->next;
			p->next = *head;
			*head = p;
		}
	}
	free(old);
}

int pending_add(struct pending_table *t, const struct pending *what)
{
	struct pending *p;

	pthread_mutex_lock(&t->lock);
	p = t->unused;
	if (p) {
		t->unused = p->next;
	} else {
		p = malloc(sizeof(*p));
		if (!p) {
			pthread_mutex_unlock(&t->lock);
			return -ENOMEM;
		}
	}
	if (atomic_load(&t->count) > t->mask)
		grow_locked(t);
	*p = *what;
	p->next = t->buckets[bucket_of(t, p->unique)];
	t->buckets[bucket_of(t, p->unique)] = p;
	atomic_fetch_add(&t->count, 1);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

/* Unlink *link, hand its words out, recycle the entry. */
static void take_locked(struct pending_table *t, struct pending **link, struct pending *out)
{
	struct pending *p = *link;

	*link = p->next;
	*out = *p;
	out->next = NULL;
	p->next = t->unused;
	t->unused = p;
	atomic_fetch_sub(&t->count, 1);
}

bool pending_take(struct pending_table *t, uint64_t unique, struct pending *out)
{
	bool found = false;

	pthread_mutex_lock(&t->lock);
	for (struct pending **link = &t->buckets[bucket_of(t, unique)]; *link;
	     link = &(*link)->next) {
		if ((*link)->unique == unique) {
			take_locked(t, link, out);
			found = true;
			break;
		}
	}
	pthread_mutex_unlock(&t->lock);
	return found;
}

bool pending_take_any(struct pending_table *t, struct pending *out)
{
	bool found = false;

	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i <= t->mask && !found; i++) {
		if (t->buckets[i]) {
			take_locked(t, &t->buckets[i], out);
			found = true;
		}
	}
	pthread_mutex_unlock(&t->lock);
	return found;
}

uint64_t pending_oldest(struct pending_table *t)
{
	uint64_t oldest = 0;

	pthread_mutex_lock(&t->lock);
	for (uint32_t i = 0; i <= t->mask; i++)
		for (const struct pending *p = t->buckets[i]; p; p = p->next)
			if (oldest == 0 || p->start_ns < oldest)
				oldest = p->start_ns;
	pthread_mutex_unlock(&t->lock);
	return oldest;
}

bool pending_any(struct pending_table *t)
{
	return atomic_load(&t->count) != 0;
}
