/* Errors of writeback: each open of a file is told of each one, and told once. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#include "peer.h"

/* ---- a disk that fails; these stand in the place of the C library's ---------------------------- */

static _Atomic int disk_error;	 /* the next sync takes it */
static _Atomic int syncs;	 /* how often it was asked */
static atomic_bool slow;	 /* whoever has taken it takes a moment to say so */
static atomic_bool taken;
static _Atomic int volume_error; /* the same for the volume, as the witness sees it */
static _Atomic int volume_syncs;
static ino_t witness;

static int say(int error)
{
	if (!error)
		return 0;
	atomic_store(&taken, true);
	if (atomic_load(&slow))
		usleep(50 * 1000);
	errno = error;
	return -1;
}

int fsync(int fd)
{
	CHECK(fcntl(fd, F_GETFD) >= 0);
	atomic_fetch_add(&syncs, 1);
	return say(atomic_exchange(&disk_error, 0));
}

int fdatasync(int fd)
{
	return fsync(fd);
}

int syncfs(int fd)
{
	struct stat st;

	CHECK(fstat(fd, &st) == 0);
	atomic_fetch_add(&volume_syncs, 1);
	return st.st_ino == witness ? say(atomic_exchange(&volume_error, 0)) : 0;
}

/* ---- the count by itself ------------------------------------------------------------------------ */

static void every_handle_is_told_once(void)
{
	struct writeback w = {0};
	uint64_t a = writeback_handle(&w, 10), b = writeback_handle(&w, 12), late;

	CHECK(a != b);
	CHECK(writeback_tell(&w, a) == 0 && writeback_tell(&w, b) == 0 && !w.told);
	writeback_failed(&w, EIO);
	late = writeback_handle(&w, 14);
	CHECK(writeback_tell(&w, a) == EIO && writeback_tell(&w, a) == 0);
	CHECK(writeback_tell(&w, late) == 0);
	CHECK(writeback_tell(&w, b) == EIO && writeback_tell(&w, b) == 0);
	writeback_failed(&w, EIO);
	writeback_failed(&w, ENOSPC);
	CHECK(writeback_tell(&w, late) == ENOSPC && writeback_tell(&w, late) == 0);
	CHECK(writeback_tell(&w, a) == ENOSPC && writeback_tell(&w, b) == ENOSPC);
	CHECK(writeback_tell(&w, a) == 0 && writeback_tell(&w, b) == 0);
	writeback_free(&w);
}

static void a_handle_that_is_closed_leaves_nothing(void)
{
	struct writeback w = {0};
	uint64_t handles[3];

	for (int i = 0; i < 3; i++)
		handles[i] = writeback_handle(&w, 2 * (uint64_t)i);
	writeback_failed(&w, EIO);
	for (int i = 0; i < 3; i++)
		CHECK(writeback_tell(&w, handles[i]) == EIO);
	writeback_released(&w, handles[1]);
	writeback_released(&w, handles[1]); /* a handle that nobody knows is no error */
	CHECK(writeback_tell(&w, handles[0]) == 0 && writeback_tell(&w, handles[2]) == 0);
	writeback_released(&w, handles[0]);
	writeback_released(&w, handles[2]);
	CHECK(!w.told);
}

static void the_count_goes_round(void)
{
	struct writeback w = {.errors = UINT16_MAX};
	uint64_t a = writeback_handle(&w, UINT64_C(1) << 50), b;

	writeback_failed(&w, EIO);
	CHECK(w.errors == 0);
	b = writeback_handle(&w, UINT64_C(1) << 50 | 2);
	CHECK(writeback_tell(&w, a) == EIO && writeback_tell(&w, b) == 0);
	writeback_free(&w);
}

/* ---- by requests -------------------------------------------------------------------------------- */

static void fails_with(struct peer *p, uint64_t fh, int error)
{
	struct fuse_fsync_in in = {.fh = fh};

	expect_reply(p, ask(p, FUSE_FSYNC, 5, &in, sizeof(in)), error, 0);
}

/* As when Python has counted it. */
static uint64_t open_again(struct peer *p, uint32_t flags)
{
	CHECK(nodes_open(&p->ch->nodes, 5, flags != O_RDONLY, 0));
	return relayed_open(p, 5, flags).fh;
}

static uint64_t open_first(struct peer *p)
{
	CHECK(nodes_attach(&p->ch->nodes, 5, scratch_file(""), NODE_PRIVATE, READ_PASSTHROUGH,
			   true, 0) == 0);
	return relayed_open(p, 5, O_RDWR).fh;
}

static void release_handle(struct peer *p, uint64_t fh, uint32_t flags)
{
	struct fuse_release_in in = {.fh = fh, .flags = flags};

	expect_reply(p, ask(p, FUSE_RELEASE, 5, &in, sizeof(in)), 0, 0);
}

static void all_who_share_a_descriptor_are_told(void)
{
	uint64_t writer, reader, late;
	struct peer p;

	peer_start(&p, true, 10);
	writer = open_first(&p);
	reader = open_again(&p, O_RDONLY);
	fails_with(&p, writer, 0);
	atomic_store(&disk_error, EIO);
	fails_with(&p, reader, EIO);
	late = open_again(&p, O_RDWR);
	fails_with(&p, reader, 0);
	fails_with(&p, late, 0);
	fails_with(&p, writer, EIO);
	fails_with(&p, writer, 0);
	atomic_store(&disk_error, ENOSPC);
	release_handle(&p, writer, O_RDWR);
	fails_with(&p, late, ENOSPC);
	fails_with(&p, reader, ENOSPC);
	release_handle(&p, reader, O_RDONLY);
	release_handle(&p, late, O_RDWR);

	/* the node's next life begins with nothing to tell */
	writer = open_first(&p);
	fails_with(&p, writer, 0);
	peer_stop(&p);
}

static void readers_of_a_shared_file_are_told_of_its_clone(void)
{
	uint64_t reader, writer;
	struct peer p;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_SHARED, READ_CACHED, false, 0) == 0);
	reader = repeat_open(&p, 5).fh;
	CHECK(nodes_switch(&p.ch->nodes, 5, scratch_file("")) == 1);
	writer = open_again(&p, O_RDWR);
	atomic_store(&disk_error, EIO);
	fails_with(&p, writer, EIO);
	fails_with(&p, reader, EIO);
	fails_with(&p, reader, 0);
	peer_stop(&p);
}

static void of_two_syncs_at_once_both_are_told(void)
{
	struct fuse_fsync_in in = {0};
	uint64_t a, b, first, second;
	struct message *m;
	struct peer p;

	peer_start(&p, true, 10);
	a = open_first(&p);
	b = open_again(&p, O_RDWR);
	atomic_store(&slow, true);
	atomic_store(&taken, false);
	atomic_store(&disk_error, EIO);
	in.fh = a;
	first = ask(&p, FUSE_FSYNC, 5, &in, sizeof(in));
	while (!atomic_load(&taken))
		usleep(100);
	in.fh = b; /* its fsync(2) has nothing to say any more */
	second = ask(&p, FUSE_FSYNC, 5, &in, sizeof(in));
	for (int i = 0; i < 2; i++) {
		m = kernel_gets(&p);
		CHECK(m->out.unique == first || m->out.unique == second);
		CHECK(m->out.error == -EIO);
	}
	atomic_store(&slow, false);
	fails_with(&p, a, 0);
	fails_with(&p, b, 0);
	peer_stop(&p);
}

/* ---- over a kill -------------------------------------------------------------------------------- */

static int silent_close(int dev_fd, int32_t id)
{
	(void)dev_fd;
	(void)id;
	return 0;
}

/* Two nodes and a handle of each, as the daemon before has left them. */
struct life {
	struct node_table table;
	int volume_fd;
	uint64_t private, other;
};

static uint64_t opened(struct node_table *t, uint64_t nodeid, uint64_t unique)
{
	struct unacked *unacked;
	struct open_answer answer;

	CHECK(nodes_opened(t, nodeid, true, unique, &answer, &unacked));
	ledger_acknowledge(unacked);
	return answer.fh;
}

static void begin(struct life *l)
{
	struct stat st;

	CHECK(nodes_init(&l->table, 10, UINT32_MAX, &fake_ops, ledger_new()) == 0);
	l->volume_fd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(l->volume_fd >= 0 && fstat(l->volume_fd, &st) == 0);
	witness = st.st_ino;
	for (uint64_t id = 5; id < 7; id++)
		CHECK(nodes_attach(&l->table, id, open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600),
				   NODE_PRIVATE, READ_PASSTHROUGH, true, 0) == 0);
	l->private = opened(&l->table, 5, 100);
	l->other = opened(&l->table, 6, 102);
}

static void kill_and_restore(struct life *l)
{
	static const struct backing_ops nobody = {.close = silent_close};
	struct node_table before = l->table;

	CHECK(nodes_init(&l->table, 10, UINT32_MAX, &fake_ops,
			 ledger_open(fcntl(before.ledger->fd, F_DUPFD_CLOEXEC, 0))) == 0);
	CHECK(nodes_restore(&l->table, l->volume_fd) == 0);
	ledger_free(before.ledger);
	before.ledger = ledger_new();
	before.device.ops = &nobody;
	nodes_destroy(&before);
	ledger_free(before.ledger);
}

static void end(struct life *l)
{
	nodes_destroy(&l->table);
	ledger_free(l->table.ledger);
	close(l->volume_fd);
}

static int sync_node(struct life *l, uint64_t nodeid, uint64_t fh)
{
	struct backing *b = nodes_borrow(&l->table, nodeid);
	int err;

	CHECK(b);
	nodes_look_back(&l->table, nodeid, b);
	err = nodes_synced(&l->table, nodeid, fh, 0);
	nodes_return(&l->table, b);
	return err;
}

static void what_nobody_was_told_survives_the_daemon(void)
{
	uint64_t late, later;
	struct life l;

	begin(&l);
	CHECK(nodes_synced(&l.table, 5, l.private, EIO) == EIO);
	late = opened(&l.table, 5, 104);
	CHECK(nodes_synced(&l.table, 5, late, EDQUOT) == EDQUOT);
	later = opened(&l.table, 5, 106);
	kill_and_restore(&l);
	CHECK(sync_node(&l, 5, later) == 0);
	CHECK(sync_node(&l, 5, l.private) == EDQUOT && sync_node(&l, 5, l.private) == 0);
	CHECK(sync_node(&l, 5, late) == EDQUOT); /* once more: who was told is forgotten */
	CHECK(sync_node(&l, 5, late) == 0);
	CHECK(sync_node(&l, 6, l.other) == 0);
	end(&l);
}

static void what_the_daemon_before_may_have_kept_to_itself_is_told(void)
{
	uint64_t late;
	struct life l;

	begin(&l);
	kill_and_restore(&l);
	atomic_store(&volume_syncs, 0);
	atomic_store(&volume_error, EIO);
	CHECK(sync_node(&l, 5, l.private) == EIO && sync_node(&l, 5, l.private) == 0);
	late = opened(&l.table, 6, 108);
	CHECK(atomic_load(&volume_syncs) == 2); /* once for all, and the witness after the work is done */

	kill_and_restore(&l); /* before the other one has asked */
	CHECK(sync_node(&l, 6, l.other) == EIO && sync_node(&l, 6, l.other) == 0);
	CHECK(sync_node(&l, 6, late) == 0);
	end(&l);
}

static void a_volume_without_errors_is_asked_once(void)
{
	struct life l;

	begin(&l);
	atomic_store(&volume_syncs, 0);
	CHECK(sync_node(&l, 5, l.private) == 0);
	CHECK(atomic_load(&volume_syncs) == 0); /* nothing was restored */
	kill_and_restore(&l);
	for (int i = 0; i < 3; i++)
		CHECK(sync_node(&l, 5, l.private) == 0 && sync_node(&l, 6, l.other) == 0);
	CHECK(atomic_load(&volume_syncs) == 2);
	CHECK(l.table.witness_fd == -1);
	end(&l);
}

int main(void)
{
	RUN(every_handle_is_told_once);
	RUN(a_handle_that_is_closed_leaves_nothing);
	RUN(the_count_goes_round);
	RUN(all_who_share_a_descriptor_are_told);
	RUN(readers_of_a_shared_file_are_told_of_its_clone);
	RUN(of_two_syncs_at_once_both_are_told);
	RUN(what_nobody_was_told_survives_the_daemon);
	RUN(what_the_daemon_before_may_have_kept_to_itself_is_told);
	RUN(a_volume_without_errors_is_asked_once);
	return 0;
}
