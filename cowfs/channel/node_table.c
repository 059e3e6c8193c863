/*
 * node_table.c - the nodes that are or were backed, by node id, and each one's slot in the ledger
 *
 * A hash table, and a list of the nodes whose backing is cached, in the order of their last release. It
 * does not know what a node goes through: see node_state.c.
 *
 * Locking: everything here is called with node_table.lock.
 */
#include "node_table.h"

#include <stdlib.h>

/* ---- by node id --------------------------------------------------------------------------------- */

static uint32_t bucket_of(const struct node_table *t, uint64_t nodeid)
{
	return (uint32_t)((nodeid * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & t->mask;
}

struct node *node_find_locked(const struct node_table *t, uint64_t nodeid)
{
	struct node *n = t->buckets[bucket_of(t, nodeid)];
	while (n && n->nodeid != nodeid)
		n = n->next;
	return n;
}

/* Failing to grow is no error: chains get longer. */
static void grow_locked(struct node_table *t)
{
	uint32_t old_mask = t->mask;
	struct node **old = t->buckets;
	struct node **bigger = calloc(2 * ((size_t)old_mask + 1), sizeof(*bigger));

	if (!bigger)
		return;
	t->buckets = bigger;
	t->mask = 2 * old_mask + 1;
	for (uint32_t i = 0; i <= old_mask; i++) {
		while (old[i]) {
			struct node *n = old[i];
			struct node **head = &t->buckets[bucket_of(t, n->nodeid)];
			old[i] = n->next;
			n->next = *head;
			*head = n;
		}
	}
	free(old);
}

struct node *node_insert_locked(struct node_table *t, uint64_t nodeid, uint32_t slot)
{
	struct node *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	if (t->count > t->mask)
		grow_locked(t);
	n->nodeid = nodeid;
	n->slot = slot;
	n->next = t->buckets[bucket_of(t, nodeid)];
	t->buckets[bucket_of(t, nodeid)] = n;
	t->count++;
	return n;
}

struct node *node_find_or_insert_locked(struct node_table *t, uint64_t nodeid)
{
	struct node *n = node_find_locked(t, nodeid);
	uint32_t slot;

	if (n)
		return n;
	slot = ledger_take_slot(t->ledger);
	if (slot == LEDGER_NO_SLOT)
		return NULL;
	n = node_insert_locked(t, nodeid, slot);
	if (!n)
		ledger_give_slot(t->ledger, slot);
	return n;
}

void node_remove_locked(struct node_table *t, struct node *n)
{
	const struct ledger_slot nobody = {0};
	struct node **link = &t->buckets[bucket_of(t, n->nodeid)];

	while (*link != n)
		link = &(*link)->next;
	*link = n->next;
	t->count--;
	ledger_write(t->ledger, n->slot, &nobody, NULL, 0, 0, 0);
	ledger_give_slot(t->ledger, n->slot);
	writeback_free(&n->writeback);
	free(n);
}

/* ---- the cached ---------------------------------------------------------------------------------- */

void node_uncache_locked(struct node_table *t, struct node *n)
{
	if (!n->cached)
		return;
	*(n->newer ? &n->newer->older : &t->newest) = n->older;
	*(n->older ? &n->older->newer : &t->oldest) = n->newer;
	n->newer = n->older = NULL;
	n->cached = false;
	t->cached--;
}

void node_cache_locked(struct node_table *t, struct node *n)
{
	n->older = t->newest;
	n->newer = NULL;
	*(t->newest ? &t->newest->newer : &t->oldest) = n;
	t->newest = n;
	n->cached = true;
	t->cached++;
}

/* ---- the ledger --------------------------------------------------------------------------------- */

static struct ledger_slot slot_of(const struct node *n)
{
	struct ledger_slot s = {
		.nodeid = n->nodeid,
		.readers = n->opens.readers,
		.writers = n->opens.writers,
		.flags = (uint8_t)((n->revoked ? SLOT_REVOKED : 0) |
				   (n->forgotten ? SLOT_FORGOTTEN : 0) |
				   (n->was_passthrough ? SLOT_WAS_PASSTHROUGH : 0) |
				   (n->mappable ? SLOT_MAPPABLE : 0)),
		.errors = n->writeback.errors,
		.error = n->writeback.error,
	};

	if (n->backing) {
		s.flags |= (uint8_t)(SLOT_BACKED | (n->backing->bypass ? SLOT_BYPASS : 0));
		s.id = n->backing->id;
		s.kind = n->backing->kind;
		s.handle_len = n->backing->handle_len;
		s.handle = n->backing->handle;
	}
	return s;
}

void node_record_locked(struct node_table *t, const struct node *n)
{
	struct ledger_slot s = slot_of(n);
	ledger_write(t->ledger, n->slot, &s, NULL, 0, 0, 0);
}

void node_record_unacked_locked(struct node_table *t, const struct node *n,
				struct unacked *unacked, uint64_t unique,
				enum unacked_kind what)
{
	struct ledger_slot s = slot_of(n);
	ledger_write(t->ledger, n->slot, &s, unacked, unique, n->nodeid, what);
}
