/*
 * node_restore.c - the node table of a daemon that is gone, made again from its ledger
 *
 * Locking: restoring needs none, as no thread runs yet. looking_back is held over syncfs(2), and taken before
 * node_table.lock.
 */
#include "node_restore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "node_state.h"

static bool is_alive(const struct node_table *t, int32_t id)
{
	for (uint32_t i = 0; i < ledger_used(t->ledger); i++)
		if (t->ledger->slots[i].nodeid && t->ledger->slots[i].id == id)
			return true;
	return false;
}

/* 1: taken over, but its file cannot be opened. 0 or -ENOMEM. */
static int restore_one(struct node_table *t, uint32_t slot, int volume_fd)
{
	const struct ledger_slot *s = &t->ledger->slots[slot];
	bool open = s->flags & SLOT_BACKED && s->readers + s->writers > 0;
	struct backing *b;
	struct node *n;

	if (!open) {
		const struct ledger_slot nobody = {0};
		bool remembers = s->flags & (SLOT_WAS_PASSTHROUGH | SLOT_MAPPABLE) &&
				 !(s->flags & SLOT_FORGOTTEN) && t->device.ops->knows(t->device.dev_fd, s->nodeid);

		if (s->id > 0)
			t->device.ops->close(t->device.dev_fd, s->id);
		if (!remembers) {
			ledger_write(t->ledger, slot, &nobody, NULL, 0, 0, 0);
			ledger_give_slot(t->ledger, slot);
			return 0;
		}
	}
	n = node_insert_locked(t, s->nodeid, slot);
	if (!n)
		return -ENOMEM;
	n->revoked = s->flags & SLOT_REVOKED;
	n->forgotten = s->flags & SLOT_FORGOTTEN;
	n->was_passthrough = s->flags & SLOT_WAS_PASSTHROUGH;
	n->mappable = s->flags & SLOT_MAPPABLE;
	n->writeback.errors = s->errors;
	n->writeback.error = s->error;
	if (!open) {
		node_record_locked(t, n);
		return 0;
	}
	b = malloc(sizeof(*b));
	if (!b)
		return -ENOMEM;
	*b = (struct backing){.fd = backing_open_handle(volume_fd, s->handle_len, &s->handle,
						s->kind == NODE_PRIVATE),
			      .id = s->id,
			      .kind = s->kind,
			      .bypass = s->flags & SLOT_BYPASS,
			      .refs = 1,
			      .syncing = PTHREAD_MUTEX_INITIALIZER,
			      .handle_len = s->handle_len,
			      .handle = s->handle};
	n->backing = b;
	n->opens.readers = s->readers;
	n->opens.writers = s->writers;
	n->suspect = s->kind == NODE_PRIVATE;
	node_charge_locked(t, n, 0); /* who it was, the ledger does not say */
	return b->fd < 0;
}

int nodes_restore(struct node_table *t, int volume_fd)
{
	int32_t strays[LEDGER_STRAYS];
	uint32_t count = ledger_stray_ids(t->ledger, strays, LEDGER_STRAYS);
	int lost = 0;

	t->witness_fd = fcntl(volume_fd, F_DUPFD_CLOEXEC, 0);
	if (t->witness_fd < 0)
		return -errno;
	for (uint32_t i = 0; i < count; i++)
		if (!is_alive(t, strays[i]))
			t->device.ops->close(t->device.dev_fd, strays[i]); /* ENOENT: nobody's either */
	for (uint32_t i = 0; i < ledger_used(t->ledger); i++) {
		int one = 0;

		if (t->ledger->slots[i].nodeid)
			one = restore_one(t, i, volume_fd);
		else
			ledger_give_slot(t->ledger, i);
		if (one < 0)
			return one;
		lost += one;
	}
	return lost;
}

/*
 * An error that the daemon before was about to note when it was killed, or that the kernel has told by
 * itself to whoever has the file passed through (msync(2), O_SYNC), is one that the descriptors opened
 * since then know nothing of: it had been seen when they were opened. But the volume as a whole counts
 * errors, too, for syncfs(2), and the witness is a descriptor of it that is older than any daemon: if it
 * says that there was one, of whatever file, then everything that was open is taken to have had it.
 *
 * The first syncfs(2) does the work, and the witness is asked when it takes no time any more: what it
 * says is said once, and lost with a daemon that is killed meanwhile.
 */
void nodes_look_back(struct node_table *t, uint64_t nodeid, const struct backing *b)
{
	struct node *n;
	bool suspect;
	int err;

	pthread_mutex_lock(&t->lock);
	n = node_find_locked(t, nodeid);
	suspect = n && n->suspect;
	pthread_mutex_unlock(&t->lock);
	if (!suspect)
		return;
	pthread_mutex_lock(&t->looking_back);
	if (t->witness_fd >= 0) {
		syncfs(b->fd);
		err = syncfs(t->witness_fd) < 0 ? errno : 0;
		close(t->witness_fd);
		t->witness_fd = -1;

		pthread_mutex_lock(&t->lock);
		for (uint32_t i = 0; i <= t->mask; i++) {
			for (n = t->buckets[i]; n; n = n->next) {
				if (n->suspect && err) {
					writeback_failed(&n->writeback, err);
					node_record_locked(t, n);
				}
				n->suspect = false;
			}
		}
		pthread_mutex_unlock(&t->lock);
	}
	pthread_mutex_unlock(&t->looking_back);
}
