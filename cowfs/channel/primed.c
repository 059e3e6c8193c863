/*
 * primed.c - answers to LOOKUPs that have not come yet
 *
 * A lookup that goes through Python costs several times what it costs to answer it here, and programs
 * that go through a directory name by name make thousands. So Python may say beforehand what it would
 * answer for names of one directory, and the channel gives each answer out once: with it the kernel
 * gets one lookup count, which Python has counted when it primed the name. Names that nobody asks for
 * make room for others: the oldest goes first.
 *
 * This file knows names and finished answers. It does not know whether an answer is still true:
 * Python takes it back before it changes what it says.
 */
#include <stdlib.h>
#include <string.h>

#include "attr.h"
#include "primed.h"

#define BUCKETS 8192u
#define MAX_NAME 255

struct primed_entry {
	struct primed_entry *next; /* in its bucket; primed_table.lock */
	struct primed_entry *newer, *older; /* primed_table.lock */
	uint64_t parent;
	struct fuse_entry_out entry;
	uint32_t len;
	char name[];
};

void primed_init(struct primed_table *t)
{
	*t = (struct primed_table){.buckets = NULL};
	pthread_mutex_init(&t->lock, NULL);
}

void primed_destroy(struct primed_table *t)
{
	for (uint32_t i = 0; t->buckets && i < BUCKETS; i++) {
		while (t->buckets[i]) {
			struct primed_entry *e = t->buckets[i];
			t->buckets[i] = e->next;
			free(e);
		}
	}
	free(t->buckets);
	pthread_mutex_destroy(&t->lock);
}

/* FNV-1a. A user who chooses bad names slows down lookups among MAX_PRIMED entries, and no more. */
static uint32_t bucket_of(uint64_t parent, const char *name, size_t len)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325) ^ parent;

	for (size_t i = 0; i < len; i++)
		h = (h ^ (uint8_t)name[i]) * UINT64_C(0x100000001b3);
	return (uint32_t)(h ^ h >> 32) % BUCKETS;
}

/* The link that points to the entry, or to the end of its bucket. */
static struct primed_entry **find_locked(struct primed_table *t, uint64_t parent, const char *name,
				  size_t len)
{
	struct primed_entry **link = &t->buckets[bucket_of(parent, name, len)];

	while (*link && ((*link)->parent != parent || (*link)->len != len ||
			 memcmp((*link)->name, name, len)))
		link = &(*link)->next;
	return link;
}

/* Take the entry out that link points to. */
static struct primed_entry *take_locked(struct primed_table *t, struct primed_entry **link)
{
	struct primed_entry *e = *link;

	*link = e->next;
	*(e->newer ? &e->newer->older : &t->newest) = e->older;
	*(e->older ? &e->older->newer : &t->oldest) = e->newer;
	t->count--;
	return e;
}

bool primed_add(struct primed_table *t, uint64_t parent, const char *name, size_t len,
		const struct fuse_entry_out *entry, uint64_t *evicted)
{
	struct primed_entry *given_up = NULL;
	struct primed_entry *e;
	struct primed_entry **link;
	bool added = false;

	*evicted = 0;
	if (len == 0 || len > MAX_NAME)
		return false;
	e = malloc(sizeof(*e) + len);
	if (!e)
		return false;
	e->next = e->newer = NULL;
	e->parent = parent;
	e->entry = *entry;
	e->len = (uint32_t)len;
	memcpy(e->name, name, len);

	pthread_mutex_lock(&t->lock);
	if (!t->buckets)
		t->buckets = calloc(BUCKETS, sizeof(struct primed_entry *));
	added = t->buckets && !*find_locked(t, parent, name, len);
	if (added) {
		if (t->count == MAX_PRIMED) {
			const struct primed_entry *o = t->oldest;
			given_up = take_locked(t, find_locked(t, o->parent, o->name, o->len));
		}
		link = find_locked(t, parent, name, len);
		*link = e;
		e->older = t->newest;
		*(t->newest ? &t->newest->newer : &t->oldest) = e;
		t->newest = e;
		t->count++;
	}
	pthread_mutex_unlock(&t->lock);
	if (!added)
		free(e);
	if (given_up)
		*evicted = given_up->entry.nodeid;
	free(given_up);
	return added;
}

void primed_describe(struct fuse_entry_out *entry, const struct stat *st)
{
	*entry = (struct fuse_entry_out){
		.nodeid = st->st_ino,
		.entry_valid = FOREVER_S,
		.attr_valid = FOREVER_S,
		.attr = attr_of(st, st->st_ino),
	};
}

bool primed_take(struct primed_table *t, uint64_t parent, const char *name, size_t len,
		 struct fuse_entry_out *entry)
{
	struct primed_entry *e = NULL;

	pthread_mutex_lock(&t->lock);
	if (t->count) {
		struct primed_entry **link = find_locked(t, parent, name, len);

		if (*link)
			e = take_locked(t, link);
	}
	pthread_mutex_unlock(&t->lock);
	if (!e)
		return false;
	*entry = e->entry;
	free(e);
	return true;
}
