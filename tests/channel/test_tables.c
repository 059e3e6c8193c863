/* The node table, the pending table and the table of opcodes, each by itself. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "peer.h"

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static struct node_table *table(uint32_t max_cached)
{
	static struct node_table t;
	struct ledger *ledger = ledger_new();
	CHECK(ledger);
	CHECK(nodes_init(&t, max_cached, UINT32_MAX, &fake_ops, ledger) == 0);
	return &t;
}

static void destroy(struct node_table *t)
{
	nodes_destroy(t);
	ledger_free(t->ledger);
}

/* ---- each step with the reply that the kernel gets of it --------------------------------------- */

#define UNIQUE 4242

static bool tell(struct node_table *t, uint64_t id, bool writing, struct open_answer *a)
{
	struct unacked *unacked;
	if (!nodes_opened(t, id, writing, UNIQUE, a, &unacked))
		return false;
	ledger_acknowledge(unacked);
	return true;
}

static int attach(struct node_table *t, uint64_t id, int fd, enum node_kind kind,
		  enum node_reading reading, bool writing)
{
	struct open_answer a;
	int err = nodes_attach(t, id, fd, kind, reading, writing, 0);
	CHECK(err || tell(t, id, writing, &a));
	return err;
}

static bool count_open(struct node_table *t, uint64_t id, bool writing)
{
	struct open_answer a;
	return nodes_open(t, id, writing, 0) && tell(t, id, writing, &a);
}

static bool describe(struct node_table *t, uint64_t id, struct open_answer *a)
{
	struct unacked *unacked;
	if (!nodes_opened(t, id, false, UNIQUE, a, &unacked))
		return false;
	nodes_not_opened(t, id, false, unacked);
	return true;
}

static bool again(struct node_table *t, uint64_t id, struct open_answer *a)
{
	struct unacked *unacked;
	if (!nodes_repeat_open(t, id, UNIQUE, 0, a, &unacked))
		return false;
	ledger_acknowledge(unacked);
	return true;
}

static void release(struct node_table *t, uint64_t id, bool writing)
{
	struct unacked *unacked;
	nodes_release(t, id, NO_HANDLE, writing, UNIQUE, &unacked);
	if (unacked)
		ledger_acknowledge(unacked);
}

static int null_fd(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static void a_node_without_backing_is_not_opened(void)
{
	struct node_table *t = table(10);
	struct open_answer a;

	CHECK(!count_open(t, 5, false));
	CHECK(!again(t, 5, &a));
	CHECK(!describe(t, 5, &a));
	CHECK(!nodes_borrow(t, 5));
	CHECK(nodes_writers(t, 5) == 0);
	release(t, 5, false);
	nodes_forget(t, 5);
	CHECK(t->count == 0);
	destroy(t);
}

static void an_open_that_fails_after_it_was_counted_leaves_nothing(void)
{
	struct node_table *t = table(10);
	struct node_opens state;
	int fd = null_fd();

	CHECK(nodes_attach(t, 5, fd, NODE_PRIVATE, READ_CACHED, true, 0) == 0);
	CHECK(nodes_open(t, 5, false, 0));
	nodes_unopen(t, 5, true);
	CHECK(nodes_writers(t, 5) == 0);
	CHECK(nodes_revoke(t, 5, &state) && state.readers == 1);
	nodes_unopen(t, 5, false);
	CHECK(!is_open(fd) && t->count == 0);
	nodes_unopen(t, 5, false); /* of a node that nobody knows */

	fd = null_fd();
	CHECK(nodes_attach(t, 6, fd, NODE_SHARED, READ_CACHED, false, 0) == 0);
	nodes_unopen(t, 6, false);
	CHECK(is_open(fd) && t->cached == 1); /* for the next open, as after a release */
	destroy(t);
}

static void nobody_but_root_holds_more_than_is_left_for_all_others(void)
{
	struct node_table *t = table(10);
	struct open_answer a;
	struct unacked *unacked;

	t->holders.max = 8;
	for (uint64_t id = 1; id <= 4; id++)
		CHECK(nodes_attach(t, id, null_fd(), NODE_SHARED, READ_CACHED, false, 1000) == 0);
	CHECK(nodes_attach(t, 9, null_fd(), NODE_SHARED, READ_CACHED, false, 1000) == -ENFILE);
	CHECK(nodes_hold(t, 9, 1000) == -ENFILE && !nodes_have_room(t, 1000));
	CHECK(nodes_open(t, 1, false, 1000) == 1); /* it costs nothing */
	CHECK(nodes_attach(t, 5, null_fd(), NODE_PRIVATE, READ_CACHED, true, 1001) == 0);
	CHECK(nodes_hold(t, 5, 1001) == 0 && nodes_hold(t, 5, 1001) == 0);
	CHECK(nodes_hold(t, 10, 1001) == -ENFILE);
	CHECK(nodes_attach(t, 6, null_fd(), NODE_PRIVATE, READ_CACHED, true, 1002) == 0);
	CHECK(nodes_attach(t, 7, null_fd(), NODE_PRIVATE, READ_CACHED, true, 0) == 0);
	CHECK(nodes_attach(t, 8, null_fd(), NODE_PRIVATE, READ_CACHED, true, 0) == -ENFILE);

	nodes_unopen(t, 4, false); /* kept now, until somebody needs the room */
	CHECK(t->cached == 1 && !nodes_repeat_open(t, 4, UNIQUE, 1000, &a, &unacked));
	CHECK(nodes_open(t, 4, false, 1000) == -ENFILE && t->cached == 1);
	CHECK(nodes_repeat_open(t, 4, UNIQUE, 0, &a, &unacked));
	ledger_acknowledge(unacked);
	release(t, 4, false);
	nodes_forget(t, 5); /* open still, and nobody's to hold */
	CHECK(nodes_have_room(t, 1001) && t->cached == 1);
	CHECK(nodes_hold(t, 10, 0) == 0 && nodes_hold(t, 11, 0) == 0 && t->cached == 0);
	CHECK(!nodes_repeat_open(t, 4, UNIQUE, 1000, &a, &unacked));
	nodes_let(t, 10);
	nodes_let(t, 11);
	CHECK(t->holders.total == 6 && t->count == 6);
	destroy(t);
}

static void a_shared_backing_is_kept_and_reopened_with_the_same_id(void)
{
	struct node_table *t = table(10);
	struct open_answer a, b;

	CHECK(attach(t, 5, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(describe(t, 5, &a));
	CHECK(a.open_flags == (FOPEN_PASSTHROUGH | FOPEN_NOFLUSH) && a.backing_id > 0);
	release(t, 5, false);
	CHECK(t->cached == 1);
	CHECK(again(t, 5, &b));
	CHECK(b.backing_id == a.backing_id && b.open_flags == a.open_flags);
	CHECK(t->cached == 0);
	release(t, 5, false);
	destroy(t);
}

static void a_private_backing_is_closed_with_its_last_open(void)
{
	struct node_table *t = table(10);
	struct open_answer a;
	int fd = null_fd();

	CHECK(attach(t, 5, fd, NODE_PRIVATE, READ_PASSTHROUGH, true) == 0);
	CHECK(!again(t, 5, &a));
	CHECK(count_open(t, 5, false));
	CHECK(nodes_writers(t, 5) == 1);
	release(t, 5, true);
	CHECK(nodes_writers(t, 5) == 0 && is_open(fd));
	release(t, 5, false);
	CHECK(!is_open(fd) && fake_ids_open == 0);
	destroy(t);
}

static void the_least_recently_released_is_closed_first(void)
{
	struct node_table *t = table(2);
	struct open_answer a;
	int fd[4];

	for (int i = 0; i < 4; i++)
		CHECK(attach(t, 10 + i, fd[i] = null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	release(t, 12, false);
	release(t, 10, false);
	release(t, 11, false); /* 12 goes */
	CHECK(!is_open(fd[2]) && is_open(fd[0]) && is_open(fd[1]));
	CHECK(again(t, 10, &a)); /* from the middle of the list to its newest end */
	release(t, 10, false);
	release(t, 13, false); /* 11 goes */
	CHECK(!is_open(fd[1]) && is_open(fd[0]) && is_open(fd[3]));
	CHECK(t->cached == 2);
	destroy(t);
}

static void a_limit_of_zero_keeps_nothing(void)
{
	struct node_table *t = table(0);
	int fd = null_fd();

	CHECK(attach(t, 5, fd, NODE_SHARED, READ_CACHED, false) == 0);
	release(t, 5, false);
	CHECK(!is_open(fd) && t->count == 0);
	destroy(t);
}

static void who_reads_past_the_cache_is_told_so(void)
{
	struct node_table *t = table(10);
	struct open_answer a;

	CHECK(attach(t, 6, null_fd(), NODE_SHARED, READ_BYPASS, false) == 0);
	CHECK(again(t, 6, &a) && a.backing_id == 0);
	CHECK(a.open_flags == (FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	/* the copy's own file, which others write, is read through the cache as they write it */
	CHECK(nodes_switch(t, 6, null_fd()) == 1);
	CHECK(describe(t, 6, &a) && a.open_flags == (FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	destroy(t);
}

static void revoke_tells_what_is_open_and_ends_repeat_opens(void)
{
	struct node_table *t = table(10);
	struct node_opens s;
	struct open_answer a;
	int fd = null_fd();

	CHECK(!nodes_revoke(t, 5, &s));
	CHECK(attach(t, 5, fd, NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(again(t, 5, &a));
	CHECK(nodes_revoke(t, 5, &s));
	CHECK(s.kind == NODE_SHARED && s.readers == 2 && s.writers == 0 && s.passthrough);
	CHECK(!again(t, 5, &a));
	CHECK(count_open(t, 5, false)); /* Python still may */
	for (int i = 0; i < 3; i++)
		release(t, 5, false);
	CHECK(!is_open(fd)); /* not kept */
	CHECK(attach(t, 5, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(again(t, 5, &a)); /* a new backing may be reopened again */
	destroy(t);
}

static void revoke_closes_what_nobody_has_open(void)
{
	struct node_table *t = table(10);
	struct node_opens s;
	int fd = null_fd();

	CHECK(attach(t, 5, fd, NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	release(t, 5, false);
	CHECK(is_open(fd));
	CHECK(!nodes_revoke(t, 5, &s));
	CHECK(!is_open(fd) && fake_ids_open == 0 && t->cached == 0);
	destroy(t);
}

static void switch_moves_readers_to_the_private_file(void)
{
	struct node_table *t = table(10);
	struct node_opens s;
	int shared = null_fd(), private = null_fd();
	struct backing *reading;

	CHECK(attach(t, 5, shared, NODE_SHARED, READ_CACHED, false) == 0);
	reading = nodes_borrow(t, 5);
	CHECK(nodes_switch(t, 5, private) == 1);
	CHECK(is_open(shared)); /* a read is under way */
	nodes_return(t, reading);
	CHECK(!is_open(shared));
	CHECK(nodes_revoke(t, 5, &s));
	CHECK(s.kind == NODE_PRIVATE && s.readers == 1 && s.writers == 0 && !s.passthrough);
	CHECK(count_open(t, 5, true)); /* the writer that it was done for */
	release(t, 5, false);
	CHECK(is_open(private) && nodes_writers(t, 5) == 1);
	release(t, 5, true);
	CHECK(!is_open(private));
	destroy(t);
}

static void switch_refuses_and_leaves_the_descriptor_alone(void)
{
	struct node_table *t = table(10);
	int fd = null_fd();

	CHECK(nodes_switch(t, 5, fd) == 0); /* unknown */
	CHECK(attach(t, 5, null_fd(), NODE_SHARED, READ_CACHED, false) == 0);
	release(t, 5, false);
	CHECK(nodes_switch(t, 5, fd) == 0); /* kept, not open */
	CHECK(attach(t, 6, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(nodes_switch(t, 6, fd) == -EINVAL); /* passed through */
	CHECK(attach(t, 7, null_fd(), NODE_PRIVATE, READ_CACHED, false) == 0);
	CHECK(nodes_switch(t, 7, fd) == -EINVAL); /* private already */
	CHECK(is_open(fd));
	close(fd);
	destroy(t);
}

static void attach_closes_its_descriptor_on_every_error(void)
{
	struct node_table *t = table(10);
	int fd;

	CHECK(attach(t, 5, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(attach(t, 5, fd = null_fd(), NODE_PRIVATE, READ_PASSTHROUGH, true) == -EEXIST);
	CHECK(!is_open(fd) && fake_ids_open == 1);
	fake_open_error = EPERM;
	CHECK(attach(t, 6, fd = null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == -EPERM);
	CHECK(!is_open(fd) && t->count == 1);
	CHECK(!count_open(t, 6, false));
	destroy(t);
}

static void cached_pages_are_not_trusted_after_passthrough(void)
{
	struct node_table *t = table(10);
	struct open_answer a;

	CHECK(attach(t, 5, null_fd(), NODE_SHARED, READ_CACHED, false) == 0);
	CHECK(describe(t, 5, &a) && a.backing_id == 0);
	CHECK(a.open_flags == (FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	destroy(t);

	t = table(10);
	CHECK(attach(t, 5, null_fd(), NODE_PRIVATE, READ_PASSTHROUGH, true) == 0);
	release(t, 5, true);
	CHECK(attach(t, 5, null_fd(), NODE_PRIVATE, READ_CACHED, true) == 0);
	CHECK(describe(t, 5, &a) && a.open_flags == FOPEN_NOFLUSH);
	release(t, 5, true);
	nodes_forget(t, 5); /* the kernel's inode is gone, and its pages with it */
	CHECK(t->count == 0);
	CHECK(attach(t, 5, null_fd(), NODE_PRIVATE, READ_CACHED, true) == 0);
	CHECK(describe(t, 5, &a) && (a.open_flags & FOPEN_KEEP_CACHE));
	destroy(t);
}

static void a_release_after_forget_takes_nothing_from_a_later_open(void)
{
	struct node_table *t = table(10);
	int fd = null_fd();

	CHECK(attach(t, 5, fd, NODE_PRIVATE, READ_PASSTHROUGH, true) == 0);
	nodes_forget(t, 5); /* overtook the RELEASE */
	CHECK(is_open(fd));
	CHECK(count_open(t, 5, true)); /* looked up and opened again meanwhile */
	release(t, 5, true);     /* the late one */
	CHECK(is_open(fd) && nodes_writers(t, 5) == 1);
	release(t, 5, true);
	CHECK(!is_open(fd));

	CHECK(attach(t, 6, fd = null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	nodes_forget(t, 6);
	release(t, 6, false);
	CHECK(!is_open(fd)); /* forgotten: not kept */
	destroy(t);
}

static void what_python_holds_of_a_node_that_it_knows_again_is_counted_until_it_lets_go(void)
{
	struct node_table *t = table(10);

	CHECK(attach(t, 5, null_fd(), NODE_PRIVATE, READ_CACHED, true) == 0);
	nodes_forget(t, 5); /* overtook the RELEASE */
	CHECK(nodes_hold(t, 5, 1000) == 0); /* looked up again meanwhile, and its name removed */
	release(t, 5, true); /* the late one */
	CHECK(t->holders.total == 1 && t->count == 1);
	nodes_let(t, 5);
	CHECK(t->holders.total == 0 && t->count == 0);
	destroy(t);
}

static void counts_never_fall_below_zero(void)
{
	struct node_table *t = table(10);
	int fd = null_fd();

	CHECK(attach(t, 5, fd, NODE_PRIVATE, READ_CACHED, true) == 0);
	release(t, 5, false); /* Python and the kernel disagree about the access mode */
	CHECK(!is_open(fd));
	release(t, 5, false);
	release(t, 5, true);
	CHECK(nodes_writers(t, 5) == 0);
	destroy(t);
}

static void many_nodes_are_all_found_again(void)
{
	struct node_table *t = table(100000);
	struct open_answer a;

	for (uint64_t i = 0; i < 5000; i++) {
		uint64_t id = (i % 7 << 48) | (i * 64 + 131);
		int fd = dup(0);
		CHECK(attach(t, id, fd, NODE_SHARED, i % 2, false) == 0);
		release(t, id, false);
		if (i % 10 != 3) { /* stay below any limit of descriptors */
			nodes_forget(t, id);
			CHECK(!again(t, id, &a));
		}
	}
	CHECK(t->cached == 500);
	for (uint64_t i = 3; i < 5000; i += 10) {
		CHECK(again(t, (i % 7 << 48) | (i * 64 + 131), &a));
		CHECK((a.backing_id > 0) == (i % 2));
	}
	destroy(t);
}

static void a_pending_request_is_taken_once(void)
{
	struct pending_table t;
	struct pending p = {.unique = 8, .nodeid = 3, .opcode = FUSE_LOOKUP};
	struct pending resent = p;
	struct pending got;

	CHECK(pending_init(&t) == 0);
	CHECK(!pending_any(&t));
	resent.unique |= WIRE_UNIQUE_RESEND;
	resent.nodeid = 4;
	CHECK(pending_add(&t, &p) == 0 && pending_add(&t, &resent) == 0);
	CHECK(!pending_take(&t, 10, &got));
	CHECK(pending_take(&t, 8 | WIRE_UNIQUE_RESEND, &got) && got.nodeid == 4);
	CHECK(pending_take(&t, 8, &got) && got.nodeid == 3 && got.opcode == FUSE_LOOKUP);
	CHECK(!pending_take(&t, 8, &got));
	CHECK(!pending_any(&t));
	pending_destroy(&t);
}

static void thousands_of_pending_requests_are_all_found(void)
{
	struct pending_table t;
	struct pending got;

	CHECK(pending_init(&t) == 0);
	for (uint64_t i = 0; i < 3000; i++) {
		struct pending p = {.unique = 2 * i + 2, .nodeid = i};
		CHECK(pending_add(&t, &p) == 0);
	}
	for (uint64_t i = 0; i < 3000; i += 2)
		CHECK(pending_take(&t, 2 * i + 2, &got) && got.nodeid == i);
	for (int i = 0; i < 1500; i++)
		CHECK(pending_take_any(&t, &got) && got.nodeid % 2 == 1);
	CHECK(!pending_take_any(&t, &got));
	pending_destroy(&t);
}

static void a_primed_name_is_answered_once(void)
{
	struct primed_table t;
	struct fuse_entry_out in = {.nodeid = 7}, out = {0};
	uint64_t evicted;

	primed_init(&t);
	CHECK(!primed_take(&t, 1, "name", 4, &out));
	CHECK(primed_add(&t, 1, "name", 4, &in, &evicted));
	CHECK(!primed_add(&t, 1, "name", 4, &in, &evicted));
	CHECK(!primed_take(&t, 2, "name", 4, &out));
	CHECK(!primed_take(&t, 1, "names", 5, &out));
	CHECK(!primed_take(&t, 1, "nam", 3, &out));
	CHECK(primed_take(&t, 1, "name", 4, &out) && out.nodeid == 7);
	CHECK(!primed_take(&t, 1, "name", 4, &out));
	CHECK(!primed_add(&t, 1, "", 0, &in, &evicted));
	primed_destroy(&t);
}

static void the_oldest_primed_names_make_room_for_others(void)
{
	struct primed_table t;
	struct fuse_entry_out entry = {0};
	uint64_t evicted;
	uint32_t found = 0;
	char name[16];

	primed_init(&t);
	for (uint32_t i = 1; i <= 2 * MAX_PRIMED; i++) {
		entry.nodeid = i;
		CHECK(primed_add(&t, i % 3, name, (size_t)sprintf(name, "%u", i), &entry, &evicted));
		CHECK(evicted == (i > MAX_PRIMED ? i - MAX_PRIMED : 0));
	}
	for (uint32_t i = 1; i <= 2 * MAX_PRIMED; i += 2)
		found += primed_take(&t, i % 3, name, (size_t)sprintf(name, "%u", i), &entry);
	CHECK(found == MAX_PRIMED / 2 && t.count == MAX_PRIMED / 2);
	for (uint32_t i = 0; i < MAX_PRIMED / 2; i++)
		CHECK(primed_add(&t, 3, name, (size_t)sprintf(name, "%u", i), &entry, &evicted) && !evicted);
	CHECK(primed_add(&t, 4, "one", 3, &entry, &evicted) && evicted == MAX_PRIMED + 2);
	primed_destroy(&t); /* frees what is left: LeakSanitizer looks */
}

static void every_opcode_has_a_row(void)
{
	for (uint32_t i = 0; i < 2 * OPCODES; i++) {
		const struct opcode_info *op = opcode_info(i);
		CHECK(op && op->name && *op->name);
		CHECK(opcode_slot(i) == 0 || opcode_slot(i) == i);
	}
	CHECK(opcode_info(FUSE_COPY_FILE_RANGE_64)->route == ROUTE_HERE);
	CHECK(opcode_info(UINT32_MAX)->route == ROUTE_REFUSE);
	CHECK(opcode_info(7)->refusal == ENOSYS); /* there is no 7 */
}

int main(void)
{
	RUN(a_node_without_backing_is_not_opened);
	RUN(an_open_that_fails_after_it_was_counted_leaves_nothing);
	RUN(nobody_but_root_holds_more_than_is_left_for_all_others);
	RUN(a_shared_backing_is_kept_and_reopened_with_the_same_id);
	RUN(a_private_backing_is_closed_with_its_last_open);
	RUN(the_least_recently_released_is_closed_first);
	RUN(a_limit_of_zero_keeps_nothing);
	RUN(who_reads_past_the_cache_is_told_so);
	RUN(revoke_tells_what_is_open_and_ends_repeat_opens);
	RUN(revoke_closes_what_nobody_has_open);
	RUN(switch_moves_readers_to_the_private_file);
	RUN(switch_refuses_and_leaves_the_descriptor_alone);
	RUN(attach_closes_its_descriptor_on_every_error);
	RUN(cached_pages_are_not_trusted_after_passthrough);
	RUN(a_release_after_forget_takes_nothing_from_a_later_open);
	RUN(what_python_holds_of_a_node_that_it_knows_again_is_counted_until_it_lets_go);
	RUN(counts_never_fall_below_zero);
	RUN(many_nodes_are_all_found_again);
	RUN(a_pending_request_is_taken_once);
	RUN(thousands_of_pending_requests_are_all_found);
	RUN(a_primed_name_is_answered_once);
	RUN(the_oldest_primed_names_make_room_for_others);
	RUN(every_opcode_has_a_row);
	return 0;
}
