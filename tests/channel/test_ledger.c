/* What a daemon that was killed leaves behind, and what the next one makes of it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kept_times.h"
#include "peer.h"

#define UNIQUE 100

static int silent_open(int dev_fd, int fd)
{
	(void)dev_fd;
	(void)fd;
	return -EPERM;
}

static int silent_close(int dev_fd, int32_t id)
{
	(void)dev_fd;
	(void)id;
	return 0;
}

static const struct backing_ops nobody = {.open = silent_open, .close = silent_close};

static int volume(void)
{
	int fd = open("/var/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static int file(const char *content)
{
	int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	CHECK(write(fd, content, strlen(content)) == (ssize_t)strlen(content));
	return fd;
}

static struct node_table *table(struct ledger *ledger)
{
	struct node_table *t = calloc(1, sizeof(*t));
	CHECK(t && ledger);
	CHECK(nodes_init(t, 10, UINT32_MAX, &fake_ops, ledger) == 0);
	return t;
}

static void end(struct node_table *t)
{
	struct ledger *ledger = t->ledger;
	nodes_destroy(t);
	ledger_free(ledger);
	free(t);
}

/* The table of the next daemon. The old one's memory goes without a trace, as a killed one's does;
 * the fds in `kept` stay open in the kernel. */
static struct node_table *killed(struct node_table *t, int *lost)
{
	struct ledger *old = t->ledger;
	struct node_table *next = table(ledger_open(fcntl(old->fd, F_DUPFD_CLOEXEC, 0)));
	int volume_fd = volume();
	int n = nodes_restore(next, volume_fd);

	close(volume_fd);
	CHECK(n >= 0);
	if (lost)
		*lost = n;
	t->device.ops = &nobody;
	t->ledger = ledger_new();
	end(t);
	ledger_free(old);
	return next;
}

static struct unacked *told(struct node_table *t, uint64_t id, bool writing, uint64_t unique)
{
	struct unacked *unacked = NULL;
	struct open_answer a;

	CHECK(nodes_opened(t, id, writing, unique, &a, &unacked));
	return unacked;
}

static void attach(struct node_table *t, uint64_t id, int fd, enum node_kind kind,
		   enum node_reading reading, bool writing)
{
	CHECK(nodes_attach(t, id, fd, kind, reading, writing, 0) == 0);
	ledger_acknowledge(told(t, id, writing, UNIQUE));
}

static uint32_t readers(struct node_table *t, uint64_t id)
{
	struct node_opens s = {0};
	return nodes_revoke(t, id, &s) ? s.readers : 0;
}

static void open_files_are_opened_again_by_what_they_are(void)
{
	struct node_table *t = table(ledger_new());
	int fd = file("unlinked long ago"), still = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	struct open_answer before, after;
	struct unacked *d;
	struct backing *b;
	char read[8];

	attach(t, 5, fd, NODE_PRIVATE, READ_PASSTHROUGH, true);
	CHECK(nodes_open(t, 5, false, 0));
	CHECK(nodes_opened(t, 5, false, UNIQUE, &before, &d));
	ledger_acknowledge(d);
	nodes_mark_mappable(t, 5);

	t = killed(t, NULL);
	b = nodes_borrow(t, 5);
	CHECK(b && b->kind == NODE_PRIVATE && b->fd >= 0);
	CHECK(pread(b->fd, read, 8, 0) == 8 && !memcmp(read, "unlinked", 8));
	CHECK(pwrite(b->fd, "U", 1, 0) == 1);
	nodes_return(t, b);
	CHECK(nodes_writers(t, 5) == 1 && nodes_is_volatile(t, 5) && readers(t, 5) == 1);
	CHECK(nodes_open(t, 5, false, 0) && nodes_opened(t, 5, false, UNIQUE, &after, &d));
	ledger_acknowledge(d);
	CHECK(after.backing_id == before.backing_id && after.open_flags == before.open_flags);
	close(still);
	end(t);
}

static void what_nobody_has_open_is_closed(void)
{
	struct node_table *t = table(ledger_new());
	struct unacked *d;
	int lost;

	attach(t, 5, file("kept"), NODE_SHARED, READ_PASSTHROUGH, false);
	nodes_release(t, 5, NO_HANDLE, false, UNIQUE, &d);
	ledger_acknowledge(d);
	CHECK(t->cached == 1 && fake_ids_open == 1);
	/* counted by Python, and not told to the kernel, which will ask again */
	CHECK(nodes_attach(t, 6, file("counted"), NODE_SHARED, READ_PASSTHROUGH, false, 0) == 0);
	t = killed(t, &lost);
	CHECK(lost == 0 && fake_ids_open == 0);
	CHECK(!nodes_borrow(t, 5) && !nodes_borrow(t, 6));
	end(t);
}

static void a_file_that_is_gone_is_said_to_be_lost(void)
{
	struct node_table *t = table(ledger_new());
	struct backing *b;
	int lost;

	attach(t, 5, file("gone with its last descriptor"), NODE_PRIVATE, READ_CACHED, false);
	b = nodes_borrow(t, 5);
	nodes_return(t, b);
	close(b->fd);
	b->fd = -1;
	t = killed(t, &lost);
	CHECK(lost == 1 && readers(t, 5) == 1);
	end(t);
}

static void an_open_that_comes_again_is_counted_once(void)
{
	struct node_table *t = table(ledger_new());
	int fd = file("x"), still = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	struct unacked *d = NULL;
	struct open_answer a;

	CHECK(nodes_attach(t, 5, fd, NODE_SHARED, READ_CACHED, false, 0) == 0);
	told(t, 5, false, 10); /* the kernel has the reply, and the daemon dies before it knows */
	CHECK(nodes_repeat_open(t, 5, 12, 0, &a, &d)); /* the kernel has it not */
	CHECK(nodes_repeat_open(t, 5, 14, 0, &a, &d));
	ledger_acknowledge(d);
	t = killed(t, NULL);
	CHECK(!nodes_resent(t, 12, &d));
	CHECK(nodes_repeat_open(t, 5, 12, 0, &a, &d));
	t = killed(t, NULL); /* once more */
	CHECK(!nodes_resent(t, 12, &d));
	CHECK(nodes_repeat_open(t, 5, 12, 0, &a, &d));
	ledger_acknowledge(d);
	CHECK(!nodes_resent(t, 16, &d)); /* never seen */
	CHECK(readers(t, 5) == 3);
	close(still);
	end(t);
}

static void a_release_that_comes_again_is_counted_once(void)
{
	struct node_table *t = table(ledger_new());
	int fd = file("x"), still = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	struct unacked *d = NULL;

	attach(t, 5, fd, NODE_PRIVATE, READ_CACHED, true);
	CHECK(nodes_open(t, 5, false, 0));
	ledger_acknowledge(told(t, 5, false, UNIQUE));
	nodes_release(t, 5, NO_HANDLE, true, 20, &d);
	t = killed(t, NULL);
	CHECK(nodes_resent(t, 20, &d) && d);
	t = killed(t, NULL); /* before the answer */
	CHECK(nodes_resent(t, 20, &d) && d);
	ledger_acknowledge(d);
	CHECK(nodes_writers(t, 5) == 0 && readers(t, 5) == 1);
	close(still);
	end(t);
}

static void the_memory_of_stale_pages_goes_with_the_kernels_inode(void)
{
	struct node_table *t = table(ledger_new());
	struct unacked *d;

	for (uint64_t id = 5; id < 7; id++) {
		attach(t, id, file("x"), NODE_PRIVATE, READ_PASSTHROUGH, false);
		nodes_release(t, id, NO_HANDLE, false, UNIQUE, &d);
		ledger_acknowledge(d);
	}
	CHECK(t->count == 2);
	fake_unknown = 6;
	t = killed(t, NULL);
	CHECK(t->count == 1 && fake_ids_open == 0);
	fake_unknown = 0;
	end(t);
}

static int open_descriptors(void)
{
	int count = 0;
	for (int fd = 0; fd < 1024; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static void ten_thousand_daemons_leave_no_more_than_one(void)
{
	struct node_table *t = table(ledger_new());
	int still[8], descriptors = 0;
	uint32_t used = 0;

	for (uint64_t id = 0; id < 8; id++) {
		int fd = file("open all the time");
		still[id] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		attach(t, 100 + id, fd, NODE_PRIVATE, READ_PASSTHROUGH, true);
	}
	for (uint64_t n = 0; n < 10000; n++) {
		struct unacked *d;

		attach(t, 1000 + n, file("open once"), NODE_SHARED, READ_CACHED, false);
		nodes_release(t, 1000 + n, NO_HANDLE, false, UNIQUE, &d);
		ledger_acknowledge(d);
		t = killed(t, NULL);
		if (n == 10) {
			descriptors = open_descriptors();
			used = ledger_used(t->ledger);
		}
	}
	CHECK(open_descriptors() == descriptors && ledger_used(t->ledger) == used);
	CHECK(t->count == 8 && fake_ids_open == 8);
	for (uint64_t id = 0; id < 8; id++) {
		CHECK(nodes_writers(t, 100 + id) == 1);
		close(still[id]);
	}
	end(t);
}

/* The undo record, with the words as a kill in the middle of a change leaves them. */
static void a_change_that_was_cut_short_is_undone(void)
{
	struct ledger *l = ledger_new();
	struct ledger_slot before = {.nodeid = 5, .readers = 1}, after = {.nodeid = 5, .readers = 2};
	struct ledger_slot torn;
	struct ledger *next;
	uint8_t *words;
	size_t at;

	CHECK(l);
	CHECK(ledger_take_slot(l) == 0);
	ledger_write(l, 0, &before, NULL, 0, 0, 0);
	ledger_write(l, 0, &after, ledger_unacked(l), UNIQUE, 5, UNACKED_READER);
	CHECK(l->slots[0].readers == 2 && ledger_find_unacked(l, UNIQUE));

	/* `active` stands before a copy of the slot as it was: find it, and set it again */
	words = (uint8_t *)l->header;
	for (at = 0; at < 16384 - sizeof(before); at += 4)
		if (!memcmp(words + at, &before, sizeof(before)))
			break;
	CHECK(at < 16384 - sizeof(before));
	*(uint32_t *)(words + at - 8) = 1;
	torn = after;
	torn.writers = 77;
	l->slots[0] = torn;

	next = ledger_open(fcntl(l->fd, F_DUPFD_CLOEXEC, 0));
	CHECK(next);
	CHECK(!memcmp(&next->slots[0], &before, sizeof(before)));
	CHECK(!ledger_find_unacked(next, UNIQUE));
	ledger_free(next);
	ledger_free(l);
}

static void places_for_unacknowledged_requests_never_run_out(void)
{
	struct ledger *l = ledger_new(), *next;
	struct ledger_slot s = {.nodeid = 5};
	struct unacked *d;

	CHECK(l && ledger_take_slot(l) == 0);
	for (uint64_t i = 1; i < 1000; i++)
		ledger_write(l, 0, &s, ledger_unacked(l), 2 * i, 5, UNACKED_READER);
	next = ledger_open(fcntl(l->fd, F_DUPFD_CLOEXEC, 0));
	CHECK(next);
	ledger_free(l);
	l = next;
	d = ledger_unacked(l);
	CHECK(d);
	ledger_write(l, 0, &s, d, 5000, 5, UNACKED_RELEASE);
	CHECK(ledger_find_unacked(l, 5000) == d && d->what == UNACKED_RELEASE);
	ledger_free(l);
}

static void another_layout_is_refused(void)
{
	struct ledger *l = ledger_new();
	int fd = memfd_create("nonsense", MFD_CLOEXEC), copy;

	CHECK(l && fd >= 0);
	CHECK(ledger_check(l->fd) == 0);
	((uint32_t *)l->header)[2]++; /* the layout stands behind eight bytes of magic */
	CHECK(ledger_check(l->fd) == -EPROTO);
	copy = fcntl(l->fd, F_DUPFD_CLOEXEC, 0);
	CHECK(!ledger_open(copy) && errno == EPROTO);
	CHECK(fcntl(copy, F_GETFD) < 0);
	CHECK(ledger_check(fd) == -EINVAL);
	CHECK(!ledger_open(fd) && errno == EINVAL);
	ledger_free(l);
}

static void the_times_of_a_directory_are_set_back_by_the_next_daemon(void)
{
	struct ledger *l = ledger_new(), *next;
	char path[] = "/var/tmp/cowfs-times-XXXXXX";
	const struct timespec then[2] = {{1000, 1}, {2000, 2}};
	struct stat st;
	int volume_fd = volume(), fd;

	CHECK(l && mkdtemp(path));
	fd = open(path, O_PATH | O_CLOEXEC);
	CHECK(fd >= 0 && utimensat(AT_FDCWD, path, then, 0) == 0);
	CHECK(kept_times_begin(l, fd) == 0);
	CHECK(mkdirat(fd, "copied up", 0700) == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_mtim.tv_sec > 2000);

	next = ledger_open(fcntl(l->fd, F_DUPFD_CLOEXEC, 0));
	CHECK(next);
	kept_times_restore(next, volume_fd);
	CHECK(fstat(fd, &st) == 0);
	CHECK(st.st_mtim.tv_sec == 2000 && st.st_mtim.tv_nsec == 2);
	CHECK(st.st_atim.tv_sec == 1000 && st.st_atim.tv_nsec == 1);

	CHECK(unlinkat(fd, "copied up", AT_REMOVEDIR) == 0); /* a user's change, and there is no other */
	kept_times_restore(next, volume_fd);
	CHECK(fstat(fd, &st) == 0 && st.st_mtim.tv_sec > 2000);
	CHECK(utimensat(AT_FDCWD, path, then, 0) == 0 && kept_times_begin(next, fd) == 0);
	CHECK(mkdirat(fd, "copied up", 0700) == 0);
	kept_times_end(next, fd);
	CHECK(fstat(fd, &st) == 0 && st.st_mtim.tv_sec == 2000);

	CHECK(unlinkat(fd, "copied up", AT_REMOVEDIR) == 0 && rmdir(path) == 0);
	close(fd);
	close(volume_fd);
	ledger_free(next);
	ledger_free(l);
}

int main(void)
{
	RUN(open_files_are_opened_again_by_what_they_are);
	RUN(what_nobody_has_open_is_closed);
	RUN(a_file_that_is_gone_is_said_to_be_lost);
	RUN(an_open_that_comes_again_is_counted_once);
	RUN(a_release_that_comes_again_is_counted_once);
	RUN(the_memory_of_stale_pages_goes_with_the_kernels_inode);
	RUN(ten_thousand_daemons_leave_no_more_than_one);
	RUN(a_change_that_was_cut_short_is_undone);
	RUN(places_for_unacknowledged_requests_never_run_out);
	RUN(another_layout_is_refused);
	RUN(the_times_of_a_directory_are_set_back_by_the_next_daemon);
	return 0;
}
