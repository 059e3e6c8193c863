/*
 * node_state.c - what a node goes through between its first open and its end
 *
 * A node has at most one backing. Kernel rules allow one mode and one backing id for each inode as long
 * as anything is open, which this gives by itself. These are its states:
 *
 * state     | may be set                            | left by
 * ----------+---------------------------------------+-------------------------------------------------
 * (no node) |                                       | attach: pending; hold: unbacked
 * unbacked  | revoked                               | attach: pending; forget, let: no node
 * pending   | backing, pending, charged, suspect    | opened: open; unopen: as the last release
 * open      | the same; opens                       | last release: cached if SHARED, else unbacked
 *           |                                       | revoke: revoked
 * revoked   | the same; opens, revoked              | last release: unbacked
 * forgotten | the same; opens, revoked, forgotten   | open, hold: revoked; last release: no node
 * cached    | backing (SHARED), cached              | repeat_open: open; open: pending
 *           |                                       | revoke, or when there is no room: unbacked
 *
 * In each state besides: was_passthrough, mappable, held. They outlive a backing, and an unbacked node
 * is only there for one of them: where none is set, "unbacked" above means no node. `forget` makes an
 * open node forgotten, and is the end of every other one.
 *
 * A revoked node stays so without a backing, until the next attach. An open is pending from when Python
 * has counted it until the reply comes by; only then is it in the ledger.
 *
 * Locking: everything here is called with node_table.lock.
 */
#include "node_state.h"

#include "wire.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- the table of states, as what may be set ----------------------------------------------------- */

/* A larger table is not checked: it would take most of the time. */
#define MAX_CHECKED 64

enum node_state { UNBACKED, PENDING, OPEN, REVOKED, FORGOTTEN, CACHED };

enum {
	HAS_BACKING = 1,
	HAS_PENDING = 2,
	HAS_OPENS = 4,
	IS_CHARGED = 8,
	IS_SUSPECT = 16,
	IS_REVOKED = 32,
	IS_FORGOTTEN = 64,
	IS_CACHED = 128,
	OUTLIVES_BACKING = 256, /* was_passthrough, mappable, held */
};

#define WHILE_PENDING (HAS_BACKING | HAS_PENDING | IS_CHARGED | IS_SUSPECT | OUTLIVES_BACKING)
#define WHILE_OPEN (WHILE_PENDING | HAS_OPENS)

static const struct {
	const char *name;
	unsigned may, must;
} states[] = {
	[UNBACKED] = {"unbacked", IS_REVOKED | OUTLIVES_BACKING, OUTLIVES_BACKING},
	[PENDING] = {"pending", WHILE_PENDING, HAS_BACKING | HAS_PENDING},
	[OPEN] = {"open", WHILE_OPEN, HAS_BACKING | HAS_OPENS},
	[REVOKED] = {"revoked", WHILE_OPEN | IS_REVOKED, HAS_BACKING | IS_REVOKED},
	[FORGOTTEN] = {"forgotten", WHILE_OPEN | IS_REVOKED | IS_FORGOTTEN,
		       HAS_BACKING | IS_REVOKED | IS_FORGOTTEN},
	[CACHED] = {"cached", HAS_BACKING | IS_CACHED | OUTLIVES_BACKING, HAS_BACKING | IS_CACHED},
};

static enum node_state state_of(const struct node *n)
{
	if (!n->backing)
		return UNBACKED;
	if (!node_is_open(n))
		return CACHED;
	if (n->forgotten)
		return FORGOTTEN;
	if (n->revoked)
		return REVOKED;
	return opens_total(&n->opens) ? OPEN : PENDING;
}

static unsigned what_is_set(const struct node *n)
{
	return (n->backing ? HAS_BACKING : 0) | (opens_total(&n->pending) ? HAS_PENDING : 0) |
	       (opens_total(&n->opens) ? HAS_OPENS : 0) | (n->charged ? IS_CHARGED : 0) |
	       (n->suspect ? IS_SUSPECT : 0) | (n->revoked ? IS_REVOKED : 0) |
	       (n->forgotten ? IS_FORGOTTEN : 0) | (n->cached ? IS_CACHED : 0) |
	       (n->was_passthrough || n->mappable || n->held ? OUTLIVES_BACKING : 0);
}

static void check(const struct node_table *t)
{
	uint32_t count = 0, cached = 0, holders = 0;

	if (t->count > MAX_CHECKED)
		return;
	for (uint32_t i = 0; i <= t->mask; i++) {
		for (const struct node *n = t->buckets[i]; n; n = n->next) {
			enum node_state state = state_of(n);
			unsigned set = what_is_set(n);

			if (set & ~states[state].may || ~set & states[state].must ||
			    (n->cached && n->backing->kind != NODE_SHARED)) {
				fprintf(stderr, "node %" PRIu64 " is %s and has %#x set\n",
					n->nodeid, states[state].name, set);
				abort();
			}
			count++;
			cached += n->cached;
			holders += n->charged + n->held;
		}
	}
	if (count != t->count || cached != t->cached || holders != t->holders.total) {
		fprintf(stderr, "%u nodes, %u cached, %u descriptors held, not %u, %u, %u\n",
			count, cached, holders, t->count, t->cached, t->holders.total);
		abort();
	}
}
#else
static void check(const struct node_table *t)
{
	(void)t;
}
#endif

void nodes_lock(struct node_table *t)
{
	pthread_mutex_lock(&t->lock);
}

void nodes_unlock(struct node_table *t)
{
	struct backing *free_list = t->free_list;

	t->free_list = NULL;
	check(t);
	pthread_mutex_unlock(&t->lock);
	backing_free_all(&t->device, free_list);
}

/* ---- what is open -------------------------------------------------------------------------------- */

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

void node_pending_locked(struct node_table *t, struct node *n, bool writing)
{
	node_uncache_locked(t, n);
	opens_add(&n->pending, writing);
}

void node_remember_locked(struct node_table *t, struct node *n)
{
	if (!n->forgotten)
		return;
	n->forgotten = false;
	node_record_locked(t, n);
}

struct open_answer node_describe(const struct node *n, uint64_t unique)
{
	struct open_answer answer = {.fh = writeback_handle(&n->writeback, unique),
				     .open_flags = FOPEN_NOFLUSH,
				     .backing_id = n->backing->id};

	/* The kernel refuses KEEP_CACHE beside PASSTHROUGH. PARALLEL_DIRECT_WRITES has no effect
	 * there. */
	if (n->backing->id > 0) {
		answer.open_flags |= FOPEN_PASSTHROUGH;
		return answer;
	}
	if (!n->was_passthrough)
		answer.open_flags |= FOPEN_KEEP_CACHE;
	if (n->backing->bypass)
		answer.open_flags |= FOPEN_DIRECT_IO;
	return answer;
}

/* ---- for whom descriptors are held ---------------------------------------------------------------- */

bool node_have_room_locked(struct node_table *t, uint32_t uid)
{
	while (t->oldest && t->cached + t->holders.total >= t->holders.max)
		node_drop_backing_locked(t, t->oldest);
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

void node_unhold_locked(struct node_table *t, struct node *n)
{
	if (n->held)
		holders_drop(&t->holders, n->held_by);
	n->held = false;
}

/* ---- the end of an open, and of a backing ---------------------------------------------------------- */

void node_close_locked(struct node_table *t, struct node *n)
{
	if (n->backing->kind == NODE_SHARED && !n->revoked) {
		uncharge_locked(t, n);
		node_cache_locked(t, n);
		if (t->cached > t->max_cached)
			node_drop_backing_locked(t, t->oldest);
	} else {
		node_drop_backing_locked(t, n);
	}
}

void node_drop_backing_locked(struct node_table *t, struct node *n)
{
	node_uncache_locked(t, n);
	uncharge_locked(t, n);
	if (n->backing) {
		if (n->backing->id > 0)
			n->backing->closing = ledger_closing(t->ledger, n->backing->id);
		backing_put_locked(n->backing, &t->free_list);
	}
	n->backing = NULL;
	n->opens = n->pending = (struct opens){0};
	n->suspect = false;
	writeback_free(&n->writeback);
	if (n->forgotten || !(n->was_passthrough || n->mappable || n->held))
		node_remove_locked(t, n);
	else
		node_record_locked(t, n);
}
