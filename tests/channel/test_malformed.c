/* Messages that no kernel and no libfuse should send: answered with an errno or dropped, never more. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <unistd.h>

#include "peer.h"

/* After whatever came before, an honest request still is served. */
static void still_works(struct peer *p)
{
	uint64_t unique = ask(p, FUSE_RMDIR, 7, "a", 2);

	CHECK(libfuse_gets(p)->in.unique == unique);
	libfuse_replies(p, unique, EBUSY, NULL, 0);
	expect_reply(p, unique, EBUSY, 0);
}

/* ---- from the kernel ---------------------------------------------------------------------------- */

static void messages_shorter_than_a_header_are_dropped(void)
{
	uint8_t zeros[40] = {0};
	struct peer p;

	peer_start(&p, true, 10);
	for (size_t len = 1; len < sizeof(zeros); len++)
		ask_raw(&p, zeros, len);
	CHECK(kernel_gets_nothing(&p) && libfuse_gets_nothing(&p));
	still_works(&p);
	peer_stop(&p);
}

static void a_length_that_is_not_true_is_refused(void)
{
	struct {
		struct fuse_in_header head;
		char name[8];
	} m = {.head = {.opcode = FUSE_LOOKUP, .unique = 400, .nodeid = 1}, .name = "name"};
	static const uint32_t lengths[] = {0, 39, 40, 47, 49, UINT32_MAX};
	struct peer p;

	peer_start(&p, true, 10);
	for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
		m.head.len = lengths[i];
		ask_raw(&p, &m, sizeof(m));
		expect_reply(&p, 400, EINVAL, 0);
	}
	CHECK(libfuse_gets_nothing(&p));
	still_works(&p);
	peer_stop(&p);
}

/* Every opcode, cut at every length: those with a reply get one, and nothing half reaches libfuse. */
static void truncated_requests_are_refused_for_every_opcode(void)
{
	uint8_t body[256];
	struct peer p;

	memset(body, 'x', sizeof(body)); /* no name ends anywhere in it */
	peer_start(&p, true, 10);
	for (uint32_t opcode = 0; opcode < OPCODES; opcode++) {
		const struct opcode_info *op = opcode_info(opcode);
		bool mute = op->route == ROUTE_RELAY_MUTE || op->route == ROUTE_DROP;
		size_t whole = op->strings ? 200 : op->min_body;

		for (size_t len = 0; len < whole; len++) {
			uint64_t unique = ask(&p, opcode, 3, body, len);
			if (!mute)
				expect_reply(&p, unique, EINVAL, 0);
		}
	}
	CHECK(kernel_gets_nothing(&p) && libfuse_gets_nothing(&p));
	still_works(&p);
	peer_stop(&p);
}

static void setxattr_must_hold_its_name_and_its_value(void)
{
	struct {
		uint32_t size, flags, setxattr_flags, padding;
		char rest[16];
	} in = {.size = 4, .rest = "user.a"}; /* 7 bytes of name */
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	for (size_t rest = 0; rest < 7 + 4; rest++)
		expect_reply(&p, ask(&p, FUSE_SETXATTR, 3, &in, 16 + rest), EINVAL, 0);
	for (size_t head = 0; head < 16; head++)
		expect_reply(&p, ask(&p, FUSE_SETXATTR, 3, &in, head), EINVAL, 0);
	in.size = UINT32_MAX;
	expect_reply(&p, ask(&p, FUSE_SETXATTR, 3, &in, sizeof(in)), EINVAL, 0);
	in.size = 4;
	unique = ask(&p, FUSE_SETXATTR, 3, &in, 16 + 7 + 4);
	CHECK(libfuse_gets(&p)->in.unique == unique);
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	peer_stop(&p);
}

static void a_request_too_large_for_the_socket_is_refused(void)
{
	size_t size = RELAY_MAX;
	char *name = malloc(size);
	struct peer p;
	uint64_t unique;

	memset(name, 'n', size);
	name[size - 1] = 0;
	peer_start(&p, true, 10);
	expect_reply(&p, ask(&p, FUSE_LOOKUP, 1, name, size), EIO, 0);
	/* the largest that fits does pass */
	unique = ask(&p, FUSE_LOOKUP, 1, name + 40, size - 40);
	CHECK(libfuse_gets(&p)->len == RELAY_MAX);
	libfuse_replies(&p, unique, ENAMETOOLONG, NULL, 0);
	expect_reply(&p, unique, ENAMETOOLONG, 0);
	still_works(&p);
	free(name);
	peer_stop(&p);
}

static void a_batch_that_claims_more_than_it_holds_is_dropped(void)
{
	struct {
		struct fuse_batch_forget_in head;
		struct fuse_forget_one one[2];
	} in = {.head = {.count = 3}};
	struct peer p;

	peer_start(&p, true, 10);
	ask(&p, FUSE_BATCH_FORGET, 0, &in, sizeof(in));
	in.head.count = UINT32_MAX;
	ask(&p, FUSE_BATCH_FORGET, 0, &in, sizeof(in));
	in.head.count = 0;
	ask(&p, FUSE_BATCH_FORGET, 0, &in, sizeof(in));
	CHECK(libfuse_gets_nothing(&p) && kernel_gets_nothing(&p));
	still_works(&p);
	peer_stop(&p);
}

static void a_write_whose_size_is_not_true_writes_nothing(void)
{
	struct {
		struct fuse_write_in in;
		char data[8];
	} w = {.in = {.fh = 5}, .data = "payload"};
	static const uint32_t sizes[] = {0, 7, 9, UINT32_MAX};
	struct peer p;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_PRIVATE, READ_CACHED, true, 0) == 0);
	for (int i = 0; i < 4; i++) {
		w.in.size = sizes[i];
		expect_reply(&p, ask(&p, FUSE_WRITE, 5, &w, sizeof(w)), EINVAL, 0);
	}
	peer_stop(&p);
}

/* ---- from libfuse ------------------------------------------------------------------------------- */

/* Ask something of the kind, reply with these bytes; the caller must get EIO. */
static void garbled(struct peer *p, uint32_t opcode, const void *body, size_t len)
{
	char in[128] = {0};
	size_t fixed = opcode_info(opcode)->min_body;
	uint64_t unique = ask(p, opcode, 3, in, fixed + 4);

	CHECK(libfuse_gets(p)->in.unique == unique);
	libfuse_replies(p, unique, 0, body, len);
	expect_reply(p, unique, EIO, 0);
}

static void replies_of_the_wrong_size_become_eio(void)
{
	static const struct {
		uint32_t opcode;
		size_t right;
	} r[] = {{FUSE_LOOKUP, 128}, {FUSE_MKNOD, 128},	  {FUSE_MKDIR, 128},
		 {FUSE_SYMLINK, 128}, {FUSE_LINK, 128},	  {FUSE_GETATTR, 104},
		 {FUSE_SETATTR, 104}, {FUSE_CREATE, 144}, {FUSE_OPEN, 16}};
	char body[256] = {0};
	struct peer p;

	peer_start(&p, true, 10);
	for (size_t i = 0; i < sizeof(r) / sizeof(*r); i++) {
		garbled(&p, r[i].opcode, body, 0);
		garbled(&p, r[i].opcode, body, r[i].right - 1);
		garbled(&p, r[i].opcode, body, r[i].right + 1);
		garbled(&p, r[i].opcode, body, r[i].right - 8);
	}
	still_works(&p);
	peer_stop(&p);
}

static void listings_that_run_over_their_end_become_eio(void)
{
	uint8_t body[400] = {0};
	struct fuse_direntplus d = {.entry_out = {.nodeid = 9}, .dirent = {.ino = 9, .namelen = 5}};
	size_t whole = FUSE_DIRENTPLUS_SIZE(&d);
	static const uint32_t lengths[] = {9, 4096, UINT32_MAX};
	struct peer p;

	memcpy(body, &d, FUSE_NAME_OFFSET_DIRENTPLUS);
	peer_start(&p, true, 10);
	for (size_t len = 1; len < whole; len++)
		garbled(&p, FUSE_READDIRPLUS, body, len);
	garbled(&p, FUSE_READDIRPLUS, body, whole + 8); /* one good entry and a bit of another */
	for (int i = 0; i < 3; i++) {
		d.dirent.namelen = lengths[i];
		memcpy(body, &d, FUSE_NAME_OFFSET_DIRENTPLUS);
		garbled(&p, FUSE_READDIRPLUS, body, whole);
	}
	still_works(&p);
	peer_stop(&p);
}

static void replies_that_the_kernel_would_ignore_become_eio(void)
{
	static const int errors[] = {-1, 512, 100000, INT32_MIN};
	struct fuse_out_header head = {.len = sizeof(head)};
	struct peer p;

	peer_start(&p, true, 10);
	for (int i = 0; i < 4; i++) {
		head.unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
		libfuse_gets(&p);
		head.error = errors[i] == INT32_MIN ? errors[i] : -errors[i];
		libfuse_sends_raw(&p, &head, sizeof(head));
		expect_reply(&p, head.unique, EIO, 0);
	}
	head.error = 0;
	for (int i = 0; i < 2; i++) { /* a length that is not true */
		head.unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
		libfuse_gets(&p);
		head.len = i ? 15 : 17;
		libfuse_sends_raw(&p, &head, sizeof(head));
		expect_reply(&p, head.unique, EIO, 0);
	}
	still_works(&p);
	peer_stop(&p);
}

static void a_reply_larger_than_anything_allowed_becomes_eio(void)
{
	size_t size = RELAY_MAX + 1000;
	uint8_t *body = calloc(1, size);
	struct fuse_getxattr_in in = {.size = 65536};
	char ask_body[16];
	struct peer p;
	uint64_t unique;

	memcpy(ask_body, &in, sizeof(in));
	memcpy(ask_body + sizeof(in), "user.a", 7);
	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_GETXATTR, 3, ask_body, sizeof(in) + 7);
	libfuse_gets(&p);
	libfuse_replies(&p, unique, 0, body, size);
	expect_reply(&p, unique, EIO, 0);
	unique = ask(&p, FUSE_GETXATTR, 3, ask_body, sizeof(in) + 7);
	libfuse_gets(&p);
	libfuse_replies(&p, unique, 0, body, 65536); /* the largest value there is */
	expect_reply(&p, unique, 0, 65536);
	free(body);
	peer_stop(&p);
}

static void replies_to_nothing_are_dropped(void)
{
	struct fuse_out_header head = {.len = sizeof(head), .unique = 4242};
	uint8_t stub[8] = {1};
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
	libfuse_gets(&p);
	libfuse_sends_raw(&p, &head, sizeof(head));
	libfuse_sends_raw(&p, stub, sizeof(stub));
	head.unique = 0;
	head.error = FUSE_NOTIFY_INVAL_INODE;
	head.len = 99; /* a notification whose length is not true */
	libfuse_sends_raw(&p, &head, sizeof(head));
	CHECK(kernel_gets_nothing(&p));
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	head.unique = unique; /* the same reply twice */
	head.len = sizeof(head);
	head.error = 0;
	libfuse_sends_raw(&p, &head, sizeof(head));
	still_works(&p);
	peer_stop(&p);
}

/* Reproducible noise, from both sides, in whatever shape. */
static void noise_never_crashes(void)
{
	uint64_t seed = 88172645463325252u;
	uint8_t noise[600];
	struct peer p;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file("data"), NODE_PRIVATE, READ_CACHED, true, 0) == 0);
	for (int round = 0; round < 20000; round++) {
		struct fuse_in_header head;
		struct fuse_out_header reply;
		size_t len;

		for (size_t i = 0; i < sizeof(noise); i += 8) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			memcpy(noise + i, &seed, 8);
		}
		len = sizeof(head) + seed % (sizeof(noise) - sizeof(head));
		memcpy(&head, noise, sizeof(head));
		head.len = round % 16 ? (uint32_t)len : head.len;
		head.opcode = (uint32_t)(seed >> 32) % (OPCODES + 4);
		head.nodeid = round % 3 ? 5 : head.nodeid;
		head.unique = 2 * (uint64_t)round + 1000000;
		/* what would really allocate or copy terabytes is not the point here */
		if (head.opcode == FUSE_FALLOCATE || head.opcode == FUSE_WRITE)
			continue;
		memcpy(noise, &head, sizeof(head));
		ask_raw(&p, noise, len);

		reply = (struct fuse_out_header){
			.len = (uint32_t)len, .unique = head.unique, .error = 0};
		memcpy(noise, &reply, sizeof(reply));
		if (round % 2)
			libfuse_sends_raw(&p, noise, len);
		discard(&p);
	}
	CHECK(p.ch->counters->by_opcode[FUSE_LOOKUP].count > 0);
	peer_stop(&p);
}

int main(void)
{
	RUN(messages_shorter_than_a_header_are_dropped);
	RUN(a_length_that_is_not_true_is_refused);
	RUN(truncated_requests_are_refused_for_every_opcode);
	RUN(setxattr_must_hold_its_name_and_its_value);
	RUN(a_request_too_large_for_the_socket_is_refused);
	RUN(a_batch_that_claims_more_than_it_holds_is_dropped);
	RUN(a_write_whose_size_is_not_true_writes_nothing);
	RUN(replies_of_the_wrong_size_become_eio);
	RUN(listings_that_run_over_their_end_become_eio);
	RUN(replies_that_the_kernel_would_ignore_become_eio);
	RUN(a_reply_larger_than_anything_allowed_becomes_eio);
	RUN(replies_to_nothing_are_dropped);
	RUN(noise_never_crashes);
	return 0;
}
