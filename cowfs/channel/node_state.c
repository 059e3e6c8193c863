/*
 * node_state.c - what a node goes through between its first open and its end
 *
 * Locking: everything here is called with node_table.lock.
 */
#include "node_state.h"

#include "wire.h"

uint32_t opens_total(const struct opens *o)
{
	return o->readers + o->writers;
}

void opens_add(struct opens *o, bool writing)
{
	*(writing ? &o->writers : &o->readers) += 1;
}

void opens_remove(struct opens *o, bool writing)
{
	if (writing ? o->writers > 0 : o->readers == 0 && o->writers > 0)
		o->writers--;
	else if (o->readers > 0)
		o->readers--;
}

bool node_is_open(const struct node *n)
{
	return opens_total(&n->opens) + opens_total(&n->pending) > 0;
}

bool node_is_passthrough(const struct node *n)
{
	return n->backing && n->backing->id > 0;
}

bool node_have_room_locked(struct node_table *t, uint32_t uid, struct backing **dead)
{
	while (t->oldest && t->cached + t->holders.total >= t->holders.max)
		node_drop_backing_locked(t, t->oldest, dead);
	return holders_may(&t->holders, uid);
}

void node_charge_locked(struct node_table *t, struct node *n, uint32_t uid)
{
	if (n->charged)
		return;
	n->charged = holders_add(&t->holders, uid);
	n->charged_to = uid;
}

static void uncharge_locked(struct node_table *t, struct node *n)
{
	if (n->charged)
		holders_drop(&t->holders, n->charged_to);
	n->charged = false;
}

void node_uncharge_gone_locked(struct node_table *t, struct node *n)
{
	if (n->gone)
		holders_drop(&t->holders, n->gone_by);
	n->gone = false;
}

void node_drop_backing_locked(struct node_table *t, struct node *n, struct backing **dead)
{
	node_uncache_locked(t, n);
	uncharge_locked(t, n);
	if (n->backing) {
		if (n->backing->id > 0)
			n->backing->dying = ledger_dying(t->ledger, n->backing->id);
		backing_put_locked(n->backing, dead);
	}
	n->backing = NULL;
	n->opens = n->pending = (struct opens){0};
	n->suspect = false;
	writeback_free(&n->writeback);
	if (n->forgotten || !(n->was_passthrough || n->mappable || n->gone))
		node_remove_locked(t, n);
	else
		node_record_locked(t, n);
}

void node_close_locked(struct node_table *t, struct node *n, struct backing **dead)
{
	if (n->backing->kind == NODE_SHARED && !n->revoked) {
		uncharge_locked(t, n);
		node_cache_locked(t, n);
		if (t->cached > t->max_cached)
			node_drop_backing_locked(t, t->oldest, dead);
	} else {
		node_drop_backing_locked(t, n, dead);
	}
}

void node_count_pending_locked(struct node_table *t, struct node *n, bool writing)
{
	node_uncache_locked(t, n);
	opens_add(&n->pending, writing);
}

void node_describe(const struct node *n, uint64_t unique, struct open_answer *out)
{
	out->fh = writeback_handle(&n->writeback, unique);
	out->backing_id = n->backing->id;
	out->open_flags = FOPEN_NOFLUSH;
	/* The kernel refuses KEEP_CACHE beside PASSTHROUGH. PARALLEL_DIRECT_WRITES has no effect
	 * there. */
	if (n->backing->id > 0) {
		out->open_flags |= FOPEN_PASSTHROUGH;
		return;
	}
	if (!n->was_passthrough)
		out->open_flags |= FOPEN_KEEP_CACHE;
	if (n->backing->bypass)
		out->open_flags |= FOPEN_DIRECT_IO;
}
