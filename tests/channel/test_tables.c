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

static struct node_table *table(uint32_t max_kept)
{
	static struct node_table t;
	CHECK(nodes_init(&t, max_kept, &fake_ops) == 0);
	return &t;
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

	CHECK(!nodes_open(t, 5, false));
	CHECK(!nodes_repeat_open(t, 5, &a));
	CHECK(!nodes_describe(t, 5, &a));
	CHECK(!nodes_borrow(t, 5));
	CHECK(nodes_writers(t, 5) == 0);
	nodes_release(t, 5, false);
	nodes_forget(t, 5);
	CHECK(t->count == 0);
	nodes_destroy(t);
}

static void a_shared_backing_is_kept_and_reopened_with_the_same_id(void)
{
	struct node_table *t = table(10);
	struct open_answer a, b;

	CHECK(nodes_attach(t, 5, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(nodes_describe(t, 5, &a));
	CHECK(a.open_flags == (FOPEN_PASSTHROUGH | FOPEN_NOFLUSH) && a.backing_id > 0);
	nodes_release(t, 5, false);
	CHECK(t->kept == 1);
	CHECK(nodes_repeat_open(t, 5, &b));
	CHECK(b.backing_id == a.backing_id && b.open_flags == a.open_flags);
	CHECK(t->kept == 0);
	nodes_release(t, 5, false);
	nodes_destroy(t);
}

static void a_private_backing_is_closed_with_its_last_open(void)
{
	struct node_table *t = table(10);
	struct open_answer a;
	int fd = null_fd();

	CHECK(nodes_attach(t, 5, fd, NODE_PRIVATE, READ_PASSTHROUGH, true) == 0);
	CHECK(!nodes_repeat_open(t, 5, &a));
	CHECK(nodes_open(t, 5, false));
	CHECK(nodes_writers(t, 5) == 1);
	nodes_release(t, 5, true);
	CHECK(nodes_writers(t, 5) == 0 && is_open(fd));
	nodes_release(t, 5, false);
	CHECK(!is_open(fd) && fake_ids_open == 0);
	nodes_destroy(t);
}

static void the_least_recently_released_is_closed_first(void)
{
	struct node_table *t = table(2);
	struct open_answer a;
	int fd[4];

	for (int i = 0; i < 4; i++)
		CHECK(nodes_attach(t, 10 + i, fd[i] = null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	nodes_release(t, 12, false);
	nodes_release(t, 10, false);
	nodes_release(t, 11, false); /* 12 goes */
	CHECK(!is_open(fd[2]) && is_open(fd[0]) && is_open(fd[1]));
	CHECK(nodes_repeat_open(t, 10, &a)); /* from the middle of the list to its newest end */
	nodes_release(t, 10, false);
	nodes_release(t, 13, false); /* 11 goes */
	CHECK(!is_open(fd[1]) && is_open(fd[0]) && is_open(fd[3]));
	CHECK(t->kept == 2);
	nodes_destroy(t);
}

static void a_limit_of_zero_keeps_nothing(void)
{
	struct node_table *t = table(0);
	int fd = null_fd();

	CHECK(nodes_attach(t, 5, fd, NODE_SHARED, READ_CACHED, false) == 0);
	nodes_release(t, 5, false);
	CHECK(!is_open(fd) && t->count == 0);
	nodes_destroy(t);
}

static void bypass_is_said_where_the_kernel_has_it(void)
{
	struct node_table *t = table(10);
	struct open_answer a;

	CHECK(nodes_attach(t, 5, null_fd(), NODE_SHARED, READ_BYPASS, false) == 0);
	CHECK(nodes_describe(t, 5, &a) && a.backing_id == 0);
	CHECK(a.open_flags == (FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	t->may_bypass = true;
	CHECK(nodes_attach(t, 6, null_fd(), NODE_SHARED, READ_BYPASS, false) == 0);
	CHECK(nodes_repeat_open(t, 6, &a) && a.backing_id == 0);
	CHECK(a.open_flags == (FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	/* the copy's own file, which others write, is read through the cache as they write it */
	CHECK(nodes_switch(t, 6, null_fd()) == 1);
	CHECK(nodes_describe(t, 6, &a) && a.open_flags == (FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	nodes_destroy(t);
}

static void revoke_tells_what_is_open_and_ends_repeat_opens(void)
{
	struct node_table *t = table(10);
	struct node_state s;
	struct open_answer a;
	int fd = null_fd();

	CHECK(!nodes_revoke(t, 5, &s));
	CHECK(nodes_attach(t, 5, fd, NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(nodes_repeat_open(t, 5, &a));
	CHECK(nodes_revoke(t, 5, &s));
	CHECK(s.kind == NODE_SHARED && s.readers == 2 && s.writers == 0 && s.passthrough);
	CHECK(!nodes_repeat_open(t, 5, &a));
	CHECK(nodes_open(t, 5, false)); /* Python still may */
	for (int i = 0; i < 3; i++)
		nodes_release(t, 5, false);
	CHECK(!is_open(fd)); /* not kept */
	CHECK(nodes_attach(t, 5, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(nodes_repeat_open(t, 5, &a)); /* a new backing may be reopened again */
	nodes_destroy(t);
}

static void revoke_closes_what_nobody_has_open(void)
{
	struct node_table *t = table(10);
	struct node_state s;
	int fd = null_fd();

	CHECK(nodes_attach(t, 5, fd, NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	nodes_release(t, 5, false);
	CHECK(is_open(fd));
	CHECK(!nodes_revoke(t, 5, &s));
	CHECK(!is_open(fd) && fake_ids_open == 0 && t->kept == 0);
	nodes_destroy(t);
}

static void switch_moves_readers_to_the_private_file(void)
{
	struct node_table *t = table(10);
	struct node_state s;
	int shared = null_fd(), private = null_fd();
	struct backing *reading;

	CHECK(nodes_attach(t, 5, shared, NODE_SHARED, READ_CACHED, false) == 0);
	reading = nodes_borrow(t, 5);
	CHECK(nodes_switch(t, 5, private) == 1);
	CHECK(is_open(shared)); /* a read is under way */
	nodes_return(t, reading);
	CHECK(!is_open(shared));
	CHECK(nodes_revoke(t, 5, &s));
	CHECK(s.kind == NODE_PRIVATE && s.readers == 1 && s.writers == 0 && !s.passthrough);
	CHECK(nodes_open(t, 5, true)); /* the writer that it was done for */
	nodes_release(t, 5, false);
	CHECK(is_open(private) && nodes_writers(t, 5) == 1);
	nodes_release(t, 5, true);
	CHECK(!is_open(private));
	nodes_destroy(t);
}

static void switch_refuses_and_leaves_the_descriptor_alone(void)
{
	struct node_table *t = table(10);
	int fd = null_fd();

	CHECK(nodes_switch(t, 5, fd) == 0); /* unknown */
	CHECK(nodes_attach(t, 5, null_fd(), NODE_SHARED, READ_CACHED, false) == 0);
	nodes_release(t, 5, false);
	CHECK(nodes_switch(t, 5, fd) == 0); /* kept, not open */
	CHECK(nodes_attach(t, 6, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(nodes_switch(t, 6, fd) == -EINVAL); /* passed through */
	CHECK(nodes_attach(t, 7, null_fd(), NODE_PRIVATE, READ_CACHED, false) == 0);
	CHECK(nodes_switch(t, 7, fd) == -EINVAL); /* private already */
	CHECK(is_open(fd));
	close(fd);
	nodes_destroy(t);
}

static void attach_closes_its_descriptor_on_every_error(void)
{
	struct node_table *t = table(10);
	int fd;

	CHECK(nodes_attach(t, 5, null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	CHECK(nodes_attach(t, 5, fd = null_fd(), NODE_PRIVATE, READ_PASSTHROUGH, true) == -EEXIST);
	CHECK(!is_open(fd) && fake_ids_open == 1);
	fake_open_error = EPERM;
	CHECK(nodes_attach(t, 6, fd = null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == -EPERM);
	CHECK(!is_open(fd) && t->count == 1);
	CHECK(!nodes_open(t, 6, false));
	nodes_destroy(t);
}

static void cached_pages_are_not_trusted_after_passthrough(void)
{
	struct node_table *t = table(10);
	struct open_answer a;

	CHECK(nodes_attach(t, 5, null_fd(), NODE_SHARED, READ_CACHED, false) == 0);
	CHECK(nodes_describe(t, 5, &a) && a.backing_id == 0);
	CHECK(a.open_flags == (FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	nodes_destroy(t);

	t = table(10);
	CHECK(nodes_attach(t, 5, null_fd(), NODE_PRIVATE, READ_PASSTHROUGH, true) == 0);
	nodes_release(t, 5, true);
	CHECK(nodes_attach(t, 5, null_fd(), NODE_PRIVATE, READ_CACHED, true) == 0);
	CHECK(nodes_describe(t, 5, &a) && a.open_flags == FOPEN_NOFLUSH);
	nodes_release(t, 5, true);
	nodes_forget(t, 5); /* the kernel's inode is gone, and its pages with it */
	CHECK(t->count == 0);
	CHECK(nodes_attach(t, 5, null_fd(), NODE_PRIVATE, READ_CACHED, true) == 0);
	CHECK(nodes_describe(t, 5, &a) && (a.open_flags & FOPEN_KEEP_CACHE));
	nodes_destroy(t);
}

static void a_release_after_forget_takes_nothing_from_a_later_open(void)
{
	struct node_table *t = table(10);
	int fd = null_fd();

	CHECK(nodes_attach(t, 5, fd, NODE_PRIVATE, READ_PASSTHROUGH, true) == 0);
	nodes_forget(t, 5); /* overtook the RELEASE */
	CHECK(is_open(fd));
	CHECK(nodes_open(t, 5, true)); /* looked up and opened again meanwhile */
	nodes_release(t, 5, true);     /* the late one */
	CHECK(is_open(fd) && nodes_writers(t, 5) == 1);
	nodes_release(t, 5, true);
	CHECK(!is_open(fd));

	CHECK(nodes_attach(t, 6, fd = null_fd(), NODE_SHARED, READ_PASSTHROUGH, false) == 0);
	nodes_forget(t, 6);
	nodes_release(t, 6, false);
	CHECK(!is_open(fd)); /* forgotten: not kept */
	nodes_destroy(t);
}

static void counts_never_fall_below_zero(void)
{
	struct node_table *t = table(10);
	int fd = null_fd();

	CHECK(nodes_attach(t, 5, fd, NODE_PRIVATE, READ_CACHED, true) == 0);
	nodes_release(t, 5, false); /* Python and the kernel disagree about the access mode */
	CHECK(!is_open(fd));
	nodes_release(t, 5, false);
	nodes_release(t, 5, true);
	CHECK(nodes_writers(t, 5) == 0);
	nodes_destroy(t);
}

static void many_nodes_are_all_found_again(void)
{
	struct node_table *t = table(100000);
	struct open_answer a;

	for (uint64_t i = 0; i < 5000; i++) {
		uint64_t id = (i % 7 << 48) | (i * 64 + 131);
		int fd = dup(0);
		CHECK(nodes_attach(t, id, fd, NODE_SHARED, i % 2, false) == 0);
		nodes_release(t, id, false);
		if (i % 10 != 3) { /* stay below any limit of descriptors */
			nodes_forget(t, id);
			CHECK(!nodes_repeat_open(t, id, &a));
		}
	}
	CHECK(t->kept == 500);
	for (uint64_t i = 3; i < 5000; i += 10) {
		CHECK(nodes_repeat_open(t, (i % 7 << 48) | (i * 64 + 131), &a));
		CHECK((a.backing_id > 0) == (i % 2));
	}
	nodes_destroy(t);
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

	primed_init(&t);
	CHECK(!primed_take(&t, 1, "name", 4, &out));
	CHECK(primed_add(&t, 1, "name", 4, &in));
	CHECK(!primed_add(&t, 1, "name", 4, &in));
	CHECK(!primed_take(&t, 2, "name", 4, &out));
	CHECK(!primed_take(&t, 1, "names", 5, &out));
	CHECK(!primed_take(&t, 1, "nam", 3, &out));
	CHECK(primed_take(&t, 1, "name", 4, &out) && out.nodeid == 7);
	CHECK(!primed_take(&t, 1, "name", 4, &out));
	CHECK(!primed_add(&t, 1, "", 0, &in));
	primed_destroy(&t);
}

static void primed_names_are_bounded(void)
{
	struct primed_table t;
	struct fuse_entry_out entry = {.nodeid = 1};
	uint32_t added = 0;
	char name[16];

	primed_init(&t);
	for (uint32_t i = 0; i < 40000; i++)
		added += primed_add(&t, i % 3, name, (size_t)sprintf(name, "%u", i), &entry);
	CHECK(added == 16384);
	for (uint32_t i = 0; i < 40000; i++)
		added -= primed_take(&t, i % 3, name, (size_t)sprintf(name, "%u", i), &entry);
	CHECK(added == 0);
	CHECK(primed_add(&t, 1, "left", 4, &entry)); /* destroy frees it: LeakSanitizer looks */
	primed_destroy(&t);
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
	RUN(a_shared_backing_is_kept_and_reopened_with_the_same_id);
	RUN(a_private_backing_is_closed_with_its_last_open);
	RUN(the_least_recently_released_is_closed_first);
	RUN(a_limit_of_zero_keeps_nothing);
	RUN(bypass_is_said_where_the_kernel_has_it);
	RUN(revoke_tells_what_is_open_and_ends_repeat_opens);
	RUN(revoke_closes_what_nobody_has_open);
	RUN(switch_moves_readers_to_the_private_file);
	RUN(switch_refuses_and_leaves_the_descriptor_alone);
	RUN(attach_closes_its_descriptor_on_every_error);
	RUN(cached_pages_are_not_trusted_after_passthrough);
	RUN(a_release_after_forget_takes_nothing_from_a_later_open);
	RUN(counts_never_fall_below_zero);
	RUN(many_nodes_are_all_found_again);
	RUN(a_pending_request_is_taken_once);
	RUN(thousands_of_pending_requests_are_all_found);
	RUN(a_primed_name_is_answered_once);
	RUN(primed_names_are_bounded);
	RUN(every_opcode_has_a_row);
	return 0;
}
