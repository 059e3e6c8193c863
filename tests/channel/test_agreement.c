/* What one version has agreed on with the kernel, and another one is to serve. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "peer.h"

static const struct wire_init_in_ext everything = {
	.base = {.major = 7, .minor = 45, .max_readahead = 131072, .flags = UINT32_MAX},
	.flags2 = UINT32_MAX,
};

static struct ledger_init agreed(void)
{
	struct ledger_init init = {.head = {.opcode = FUSE_INIT, .unique = 2}, .in = everything};

	init.out = agreement_make(&everything, true);
	return init;
}

static bool is_served(const struct ledger_init *init)
{
	char why[AGREEMENT_WHY];

	return agreement_can_be_served(init, true, why);
}

static void refused(const struct ledger_init *init, const char *words)
{
	char why[AGREEMENT_WHY] = "";

	CHECK(!agreement_can_be_served(init, true, why));
	CHECK(strstr(why, words));
}

/* ---- what can be served -------------------------------------------------------------------------- */

static void what_this_version_agrees_on_it_serves(void)
{
	struct wire_init_in_ext old = {.base = {.major = 7, .minor = 31, .flags = FUSE_ASYNC_READ}};
	struct ledger_init init = agreed();

	CHECK(is_served(&init));
	init.in = old;
	init.out = agreement_make(&old, true);
	CHECK(is_served(&init));
	init.out = agreement_make(&old, false);
	CHECK(is_served(&init));
}

static void what_older_kernels_lack_an_older_version_may_have_left_out(void)
{
	const uint64_t since[] = {FUSE_HANDLE_KILLPRIV_V2, FUSE_SETXATTR_EXT, FUSE_PASSTHROUGH,
				  FUSE_DIRECT_IO_ALLOW_MMAP, FUSE_ALLOW_IDMAP};

	for (size_t i = 0; i < sizeof(since) / sizeof(*since); i++) {
		struct ledger_init init = agreed();

		init.out.flags &= ~(uint32_t)since[i];
		init.out.flags2 &= ~(uint32_t)(since[i] >> 32);
		if (since[i] == FUSE_PASSTHROUGH)
			init.out.max_stack_depth = 0;
		CHECK(is_served(&init));
	}
}

static void the_kernels_own_numbers_may_be_others(void)
{
	struct ledger_init init = agreed();

	init.out.minor = 31;
	init.out.max_background = 12;
	init.out.congestion_threshold = 9;
	init.out.max_readahead = 131072;
	init.out.max_write = 131072;
	init.out.max_pages = 32;
	CHECK(is_served(&init));
}

static void data_may_be_larger_up_to_what_there_is_room_for(void)
{
	struct ledger_init init = agreed();
	uint16_t most = (uint16_t)(AGREEMENT_MAX_DATA / (unsigned long)sysconf(_SC_PAGESIZE));

	init.out.max_pages = most;
	init.out.max_write = AGREEMENT_MAX_DATA;
	CHECK(is_served(&init));
	init.out.max_write++;
	refused(&init, "the kernel may read or write 16777217 bytes at once with it, and 16777216");
	init.out.max_write--;
	init.out.max_pages++;
	refused(&init, "bytes at once with it, and 16777216 with this one");
}

/* ---- what cannot ------------------------------------------------------------------------------- */

static void a_feature_of_another_version_is_refused(void)
{
	struct ledger_init init = agreed();

	init.out.flags |= FUSE_WRITEBACK_CACHE;
	refused(&init, "it has agreed with the kernel on what this one does not do "
		       "(INIT flags 0x10000)");
	init = agreed();
	init.out.flags2 |= FUSE_SECURITY_CTX >> 32;
	refused(&init, "what this one does not do (INIT flags 0x100000000)");
}

static void a_feature_that_was_not_offered_is_refused(void)
{
	struct ledger_init init = agreed();

	init.in.flags2 &= ~(uint32_t)(FUSE_ALLOW_IDMAP >> 32);
	refused(&init, "what this one does not do (INIT flags 0x10000000000)");
}

static void a_feature_that_is_relied_on_must_have_been_agreed_on(void)
{
	struct ledger_init init = agreed();

	init.out.flags &= ~(uint32_t)FUSE_DONT_MASK;
	refused(&init, "it has not agreed with the kernel on what this one needs (INIT flags 0x40)");
}

static void passthrough_is_refused_by_who_is_told_to_do_without(void)
{
	struct ledger_init init = agreed();
	char why[AGREEMENT_WHY];

	CHECK(!agreement_can_be_served(&init, false, why));
	CHECK(strstr(why, "(INIT flags 0x2000000000)"));
}

static void another_protocol_is_refused(void)
{
	struct ledger_init init = agreed();

	init.in.base.minor = init.out.minor = WIRE_MINOR + 1;
	refused(&init, "it speaks FUSE 7.46 with the kernel, and this one 7.45");
	init.out.minor = 45;
	init.out.major = 8;
	refused(&init, "it speaks FUSE 8.45 with the kernel");
}

static void what_else_there_is_must_be_the_same(void)
{
	struct ledger_init init = agreed();

	init.out.time_gran = 1000;
	refused(&init, "times");
	init = agreed();
	init.out.max_stack_depth = 0; /* passthrough that the kernel has switched off */
	refused(&init, "stacking");
	init = agreed();
	init.out.request_timeout = 1;
	refused(&init, "time-out");
}

/* ---- the ledger ---------------------------------------------------------------------------------- */

static void it_is_seen_without_opening_the_ledger(void)
{
	struct ledger *l = ledger_new();
	struct ledger_init init = agreed(), seen;

	CHECK(l);
	CHECK(ledger_peek_init(l->fd, &seen) == -ENOTCONN);
	ledger_set_init(l, &init);
	CHECK(ledger_peek_init(l->fd, &seen) == 0);
	CHECK(!memcmp(&seen, &init, sizeof(init)));
	CHECK(ledger_peek_init(-1, &seen) == -EBADF);
	ledger_free(l);
}

/* Both neighbours of a channel that takes over what was agreed on by another one. */
static int take_over(struct peer *p, const struct ledger_init *init)
{
	struct ledger *before = ledger_new();
	int dev_fd, volume_fd = open("/var/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int err;

	CHECK(before && volume_fd >= 0);
	ledger_set_init(before, init);
	peer_new(p, true, 10);
	dev_fd = p->ch->dev_fd;
	p->ch->dev_fd = -1;
	channel_free(p->ch);
	p->ch = channel_new(true, ROOT_INO, 10, &fake_ops, fcntl(before->fd, F_DUPFD_CLOEXEC, 0));
	CHECK(p->ch);
	ledger_free(before);
	err = channel_resume(p->ch, dev_fd, volume_fd);
	close(volume_fd);
	return err;
}

static void a_read_that_is_larger_than_ours_is_answered_in_whole(void)
{
	long page = sysconf(_SC_PAGESIZE);
	struct fuse_read_in in = {.fh = 5, .size = WIRE_MAX_DATA + (uint32_t)page};
	struct ledger_init init = agreed();
	struct message *m;
	struct peer p;
	int fd = scratch_file("");

	init.out.max_pages++;
	CHECK(take_over(&p, &init) == 0);
	kernel_gets(&p); /* RESEND */
	CHECK(ftruncate(fd, in.size) == 0 && pwrite(fd, "end", 3, in.size - 3) == 3);
	CHECK(nodes_attach(&p.ch->nodes, 5, fd, NODE_SHARED, READ_CACHED, false, 0) == 0);
	m = expect_reply(&p, ask(&p, FUSE_READ, 5, &in, sizeof(in)), 0, in.size);
	CHECK(!memcmp((uint8_t *)BODY(m) + in.size - 3, "end", 3));
	peer_stop(&p);
}

static void a_smaller_agreement_leaves_room_for_every_request(void)
{
	struct {
		struct fuse_setxattr_in in;
		char name[8];
		char value[60000];
	} body = {.in = {.size = sizeof(body.value)}, .name = "user.ab"};
	struct ledger_init init = agreed();
	struct message *m;
	struct peer p;

	init.out.max_pages = 1;
	init.out.max_write = 4096;
	CHECK(take_over(&p, &init) == 0);
	CHECK(libfuse_gets(&p)->in.opcode == FUSE_INIT);
	ask(&p, FUSE_SETXATTR, 5, &body, sizeof(body));
	m = libfuse_gets(&p);
	CHECK(m->in.opcode == FUSE_SETXATTR && m->len > sizeof(body.value));
	peer_stop(&p);
}

static void what_cannot_be_served_is_not_taken_over(void)
{
	struct ledger_init init = agreed();
	struct peer p;

	init.out.flags |= FUSE_WRITEBACK_CACHE;
	CHECK(take_over(&p, &init) == -EPROTO);
	peer_stop(&p);
}

int main(void)
{
	RUN(what_this_version_agrees_on_it_serves);
	RUN(what_older_kernels_lack_an_older_version_may_have_left_out);
	RUN(the_kernels_own_numbers_may_be_others);
	RUN(data_may_be_larger_up_to_what_there_is_room_for);
	RUN(a_feature_of_another_version_is_refused);
	RUN(a_feature_that_was_not_offered_is_refused);
	RUN(a_feature_that_is_relied_on_must_have_been_agreed_on);
	RUN(passthrough_is_refused_by_who_is_told_to_do_without);
	RUN(another_protocol_is_refused);
	RUN(what_else_there_is_must_be_the_same);
	RUN(it_is_seen_without_opening_the_ledger);
	RUN(a_read_that_is_larger_than_ours_is_answered_in_whole);
	RUN(a_smaller_agreement_leaves_room_for_every_request);
	RUN(what_cannot_be_served_is_not_taken_over);
	return 0;
}
