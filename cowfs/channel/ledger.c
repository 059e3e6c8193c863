/*
 * ledger.c - what outlives the daemon: shared memory that the keeper holds
 *
 * A daemon may be killed between any two instructions, and the kernel's connection lives on. What
 * only its memory knew, and the disk does not tell, is here: which file backs which open node, by
 * which backing id, and how many descriptors there are; what was agreed at INIT; the counters.
 *
 * A change of several words is made whole by one undo record: the old words are noted first, and the
 * next daemon puts them back if the change had not come to its end. A killed thread's stores are
 * there in the order of its program up to some instruction, so it is only the compiler that must keep
 * the order. Changes are made under node_table.lock, hence one at a time.
 *
 * This file knows layouts, and nothing of what the fields mean.
 */
#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Sparse: what no node has used takes no memory. */
#define MAX_SLOTS (1u << 22)
#define SLOTS_AT 16384
/* In what earlier versions have left empty, and so at a place of its own. */
#define TALLY_AT 12288
#define LEDGER_SIZE (SLOTS_AT + (size_t)MAX_SLOTS * sizeof(struct ledger_slot))

#define MAX_UNACKED 256
#define MAX_CLOSING 128
#define AGAIN 128
#define NO_UNACKED UINT32_MAX

static const char magic[8] = "cowfsled";

struct undo {
	_Atomic uint32_t active;
	uint32_t slot;
	struct ledger_slot slot_before;
	uint32_t unacked;
	uint64_t unique_before;
};

struct again {
	uint64_t unique;
	uint64_t times;
};

struct ledger_header {
	char magic[8];
	uint32_t layout;
	uint32_t used;	/* node_table.lock */
	uint32_t lives; /* daemons that have opened it */
	int32_t last_id;
	uint32_t has_init;
	struct ledger_init init;
	struct undo undo; /* node_table.lock */
	_Atomic int32_t closing[MAX_CLOSING];
	struct unacked unacked[MAX_UNACKED];
	struct again again[AGAIN]; /* again_lock */
	struct counters counters;
	struct ledger_times times; /* touch_table.lock */
};

_Static_assert(sizeof(struct ledger_header) <= TALLY_AT, "the tally's place");
_Static_assert(TALLY_AT + sizeof(struct tally) <= SLOTS_AT, "the slots' place");

/* ---- making and opening ----------------------------------------------------------------------- */

static struct ledger *map(int fd)
{
	struct ledger *l = calloc(1, sizeof(*l));
	void *at;

	if (!l) {
		close(fd);
		return NULL;
	}
	l->fd = fd;
	pthread_mutex_init(&l->again_lock, NULL);
	at = mmap(NULL, LEDGER_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (at == MAP_FAILED) {
		int err = errno;
		close(fd);
		free(l);
		errno = err;
		return NULL;
	}
	l->header = at;
	l->slots = (struct ledger_slot *)((uint8_t *)at + SLOTS_AT);
	return l;
}

struct ledger *ledger_new(void)
{
	struct ledger *l;
	int fd = memfd_create("cowfs-ledger", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return NULL;
	if (ftruncate(fd, LEDGER_SIZE) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		int err = errno;
		close(fd);
		errno = err;
		return NULL;
	}
	l = map(fd);
	if (!l)
		return NULL;
	memcpy(l->header->magic, magic, sizeof(magic));
	l->header->layout = LEDGER_LAYOUT;
	l->header->lives = 1;
	return l;
}

int ledger_check(int fd)
{
	struct {
		char magic[8];
		uint32_t layout;
	} head;
	struct stat st;
	ssize_t n = pread(fd, &head, sizeof(head), 0);

	if (n < 0)
		return -errno;
	if (n != sizeof(head) || memcmp(head.magic, magic, sizeof(magic)))
		return -EINVAL;
	if (head.layout != LEDGER_LAYOUT)
		return -EPROTO;
	if (fstat(fd, &st) < 0)
		return -errno;
	return st.st_size == (off_t)LEDGER_SIZE ? 0 : -EPROTO;
}

int ledger_peek_init(int fd, struct ledger_init *init)
{
	uint32_t has_init = 0;
	ssize_t n = pread(fd, &has_init, sizeof(has_init), offsetof(struct ledger_header, has_init));

	if (n == sizeof(has_init) && !has_init)
		return -ENOTCONN;
	if (n == sizeof(has_init))
		n = pread(fd, init, sizeof(*init), offsetof(struct ledger_header, init));
	if (n < 0)
		return -errno;
	return n == sizeof(*init) ? 0 : -EIO;
}

/* 0, or -errno: the ledger is a memory file of one size, so what is missing is an error. */
static int peek(int fd, void *to, size_t len, size_t at)
{
	ssize_t n = pread(fd, to, len, (off_t)at);

	if (n < 0)
		return -errno;
	return n == (ssize_t)len ? 0 : -EIO;
}

/* What is open. A slot that is just written may be seen half old and half new: it is one of many. */
static int peek_slots(int fd, uint32_t used, struct ledger_counts *counts)
{
	struct ledger_slot some[64];
	int err = 0;

	for (uint32_t at = 0; !err && at < used && at < MAX_SLOTS; at += 64) {
		uint32_t count = used - at < 64 ? used - at : 64;

		err = peek(fd, some, count * sizeof(*some), SLOTS_AT + (size_t)at * sizeof(*some));
		for (uint32_t i = 0; !err && i < count; i++) {
			uint64_t opens = (uint64_t)some[i].readers + some[i].writers;

			if (!some[i].nodeid || !opens)
				continue;
			counts->files++;
			counts->handles += opens;
			if (some[i].id > 0)
				counts->passed += opens;
		}
	}
	return err;
}

int ledger_peek_counts(int fd, struct ledger_counts *counts)
{
	struct ledger_header head;
	int err = ledger_check(fd);

	*counts = (struct ledger_counts){.files = 0};
	if (!err)
		err = peek(fd, &head, sizeof(head), 0);
	if (!err)
		err = peek(fd, &counts->tally, sizeof(counts->tally), TALLY_AT);
	if (err)
		return err;
	counts->lives = head.lives;
	memcpy(&counts->counters, &head.counters, sizeof(head.counters));
	return peek_slots(fd, head.used, counts);
}

static void undo(struct ledger *l)
{
	struct undo *u = &l->header->undo;

	if (!atomic_load(&u->active))
		return;
	if (u->slot < MAX_SLOTS)
		l->slots[u->slot] = u->slot_before;
	if (u->unacked < MAX_UNACKED)
		atomic_store(&l->header->unacked[u->unacked].unique, u->unique_before);
	atomic_store(&u->active, 0);
}

struct ledger *ledger_open(int fd)
{
	struct ledger *l;
	int err = ledger_check(fd);

	if (err) {
		close(fd);
		errno = -err;
		return NULL;
	}
	l = map(fd);
	if (!l)
		return NULL;
	undo(l);
	l->header->lives++;
	return l;
}

void ledger_free(struct ledger *l)
{
	if (!l)
		return;
	munmap(l->header, LEDGER_SIZE);
	close(l->fd);
	pthread_mutex_destroy(&l->again_lock);
	free(l->unused);
	free(l);
}

struct counters *ledger_counters(struct ledger *l)
{
	return &l->header->counters;
}

struct ledger_times *ledger_times(struct ledger *l)
{
	return &l->header->times;
}

struct tally *ledger_tally(struct ledger *l)
{
	return (struct tally *)((uint8_t *)l->header + TALLY_AT);
}

const struct ledger_init *ledger_init(const struct ledger *l)
{
	return l->header->has_init ? &l->header->init : NULL;
}

void ledger_set_init(struct ledger *l, const struct ledger_init *init)
{
	l->header->init = *init;
	atomic_signal_fence(memory_order_seq_cst);
	l->header->has_init = 1;
}

/* ---- slots -------------------------------------------------------------------------------------- */

uint32_t ledger_take_slot(struct ledger *l)
{
	if (l->unused_count)
		return l->unused[--l->unused_count];
	if (l->header->used == MAX_SLOTS)
		return LEDGER_NO_SLOT;
	return l->header->used++;
}

uint32_t ledger_used(const struct ledger *l)
{
	return l->header->used;
}

/* One that finds no memory is lost until the next daemon looks. */
void ledger_give_slot(struct ledger *l, uint32_t slot)
{
	if (l->unused_count == l->unused_room) {
		uint32_t room = l->unused_room ? 2 * l->unused_room : 64;
		uint32_t *bigger = realloc(l->unused, room * sizeof(*bigger));
		if (!bigger)
			return;
		l->unused = bigger;
		l->unused_room = room;
	}
	l->unused[l->unused_count++] = slot;
}

void ledger_write(struct ledger *l, uint32_t slot, const struct ledger_slot *now,
		  struct unacked *unacked, uint64_t unique, uint64_t nodeid,
		  enum unacked_kind what)
{
	struct undo *u = &l->header->undo;

	u->slot = slot;
	u->slot_before = l->slots[slot];
	u->unacked = NO_UNACKED;
	if (unacked) {
		u->unacked = (uint32_t)(unacked - l->header->unacked);
		u->unique_before = atomic_load_explicit(&unacked->unique, memory_order_relaxed);
	}
	atomic_store_explicit(&u->active, 1, memory_order_seq_cst);
	l->slots[slot] = *now;
	if (unacked) {
		if (unique) { /* else what it was stays, should this be undone */
			unacked->nodeid = nodeid;
			unacked->life = l->header->lives;
			unacked->what = what;
		}
		atomic_store_explicit(&unacked->unique, unique, memory_order_seq_cst);
	}
	atomic_store_explicit(&u->active, 0, memory_order_seq_cst);
}

/* ---- unacknowledged requests --------------------------------------------------------------------- */

struct unacked *ledger_unacked(struct ledger *l)
{
	struct unacked *oldest = &l->header->unacked[0];

	/* A thread has one at most, and there are fewer threads than places. What is left of earlier
	 * daemons is taken only when they fill the rest: the oldest has been answered long ago. */
	for (uint32_t i = 0; i < MAX_UNACKED; i++) {
		struct unacked *u = &l->header->unacked[i];
		if (atomic_load_explicit(&u->unique, memory_order_acquire) == 0)
			return u;
		if (u->life < oldest->life)
			oldest = u;
	}
	return oldest;
}

struct unacked *ledger_find_unacked(struct ledger *l, uint64_t unique)
{
	for (uint32_t i = 0; i < MAX_UNACKED; i++) {
		struct unacked *u = &l->header->unacked[i];
		if (atomic_load_explicit(&u->unique, memory_order_acquire) == unique)
			return u;
	}
	return NULL;
}

void ledger_acknowledge(struct unacked *unacked)
{
	atomic_store_explicit(&unacked->unique, 0, memory_order_release);
}

/* ---- requests that come again -------------------------------------------------------------------- */

/* A full table forgets the oldest request, which has the smallest number. */
uint32_t ledger_came_again(struct ledger *l, uint64_t unique)
{
	struct again *place = &l->header->again[0];
	uint32_t times;

	pthread_mutex_lock(&l->again_lock);
	for (uint32_t i = 0; i < AGAIN; i++) {
		struct again *a = &l->header->again[i];
		if (a->unique == unique) {
			place = a;
			break;
		}
		if (a->unique < place->unique)
			place = a;
	}
	if (place->unique != unique) {
		place->times = 0;
		atomic_signal_fence(memory_order_seq_cst);
		place->unique = unique;
	}
	times = (uint32_t)++place->times;
	pthread_mutex_unlock(&l->again_lock);
	return times;
}

/* ---- backing ids --------------------------------------------------------------------------------- */

_Atomic int32_t *ledger_closing(struct ledger *l, int32_t id)
{
	for (uint32_t i = 0; i < MAX_CLOSING; i++) {
		_Atomic int32_t *d = &l->header->closing[i];
		if (atomic_load_explicit(d, memory_order_acquire) == 0) {
			atomic_store_explicit(d, id, memory_order_release);
			return d;
		}
	}
	return NULL; /* a kill just now would leave the id to the kernel until the unmount */
}

void ledger_registered(struct ledger *l, int32_t id)
{
	l->header->last_id = id;
}

uint32_t ledger_stray_ids(struct ledger *l, int32_t *ids, uint32_t room)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < MAX_CLOSING && count < room; i++) {
		int32_t id = atomic_exchange(&l->header->closing[i], 0);
		if (id > 0)
			ids[count++] = id;
	}
	/* The kernel counts up: an id that was given out and not noted is the next one. */
	if (count + 1 < room && l->header->last_id >= 0) {
		ids[count++] = l->header->last_id + 1;
		if (l->header->last_id > 0)
			ids[count++] = l->header->last_id;
	}
	return count;
}
