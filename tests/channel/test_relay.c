/* INIT with both sides, requests on their way to libfuse, replies on their way to the kernel. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peer.h"

/* More than 32 bits, and all of them are shown. */
#define LARGE(n) ((uint64_t)(n) << 48)

/* ---- INIT -------------------------------------------------------------------------------------- */

static struct wire_init_out handshake(struct peer *p, bool passthrough, uint32_t minor,
				      uint64_t offered, size_t body)
{
	struct wire_init_in_ext in = {
		.base = {.major = 7, .minor = minor, .flags = (uint32_t)offered},
		.flags2 = (uint32_t)(offered >> 32)};
	struct wire_init_out out;
	uint64_t unique;

	peer_new(p, passthrough, 10);
	unique = ask(p, FUSE_INIT, 0, &in, body);
	CHECK(channel_start(p->ch) == 0);
	memcpy(&out, BODY(expect_reply(p, unique, 0, sizeof(out))), sizeof(out));
	return out;
}

static void init_asks_the_kernel_for_passthrough(void)
{
	struct peer p;
	struct wire_init_out out = handshake(&p, true, 45, UINT64_MAX, 64);
	uint64_t flags = out.flags | (uint64_t)out.flags2 << 32;
	uint64_t must = FUSE_PASSTHROUGH | FUSE_INIT_EXT | FUSE_HANDLE_KILLPRIV_V2 |
			FUSE_PARALLEL_DIROPS | FUSE_ATOMIC_O_TRUNC | FUSE_POSIX_ACL |
			FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_NO_OPENDIR_SUPPORT |
			FUSE_DO_READDIRPLUS | FUSE_DONT_MASK | FUSE_SETXATTR_EXT |
			FUSE_DIRECT_IO_ALLOW_MMAP;
	uint64_t never = FUSE_WRITEBACK_CACHE | FUSE_AUTO_INVAL_DATA | FUSE_READDIRPLUS_AUTO |
			 FUSE_EXPORT_SUPPORT | FUSE_NO_OPEN_SUPPORT | FUSE_SECURITY_CTX |
			 FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;

	CHECK(out.major == 7 && out.minor == 45);
	CHECK((flags & must) == must && !(flags & never));
	CHECK(out.max_stack_depth == 1 && out.request_timeout == 0);
	CHECK(out.max_write == 1 << 20 && out.time_gran == 1);
	CHECK(out.max_pages == agreement_max_pages(sysconf(_SC_PAGESIZE)));
	CHECK(p.ch->passthrough);
	peer_stop(&p);
}

static void a_read_is_as_large_as_a_write_whatever_a_page_is(void)
{
	CHECK(agreement_max_pages(4096) == 256);
	CHECK(agreement_max_pages(65536) == 16);
	CHECK(agreement_max_pages(1 << 20) == 1);
	CHECK(agreement_max_pages(1 << 24) == 1);
}

static void init_takes_only_what_an_older_kernel_offers(void)
{
	struct peer p;
	struct wire_init_out out = handshake(&p, true, 31, FUSE_ASYNC_READ | FUSE_WRITEBACK_CACHE,
					     sizeof(struct wire_init_in));

	CHECK(out.minor == 31 && out.flags == FUSE_ASYNC_READ && out.flags2 == 0);
	CHECK(out.max_stack_depth == 0 && !p.ch->passthrough);
	peer_stop(&p);
}

static void init_leaves_passthrough_when_told_so(void)
{
	struct peer p;
	struct wire_init_out out = handshake(&p, false, 45, UINT64_MAX, 64);

	CHECK(!(((uint64_t)out.flags2 << 32) & FUSE_PASSTHROUGH) && !p.ch->passthrough);
	peer_stop(&p);
}

static void libfuse_gets_an_init_that_makes_it_read_instead_of_splice(void)
{
	struct peer p;
	struct message *m;
	struct wire_init_in in;

	handshake(&p, true, 45, UINT64_MAX, 64);
	m = libfuse_gets(&p);
	CHECK(m->len == sizeof(m->in) + 16 && m->in.len == m->len && m->in.opcode == FUSE_INIT);
	memcpy(&in, IN_BODY(m), sizeof(in));
	CHECK(in.major == 7 && in.minor == 13);
	CHECK(in.flags & FUSE_DO_READDIRPLUS);
	CHECK(!(in.flags & (FUSE_INIT_EXT | FUSE_SPLICE_READ | FUSE_MAX_PAGES | FUSE_SETXATTR_EXT)));
	peer_stop(&p);
}

static void what_is_no_init_is_refused(void)
{
	struct wire_init_in in = {.major = 7, .minor = 12};
	struct fuse_in_header head = {.len = sizeof(head), .opcode = FUSE_LOOKUP};
	struct peer p;
	uint64_t unique;

	peer_new(&p, true, 10);
	unique = ask(&p, FUSE_INIT, 0, &in, sizeof(in)); /* older than anything that we know */
	CHECK(channel_start(p.ch) == -EPROTO);
	expect_reply(&p, unique, EPROTO, 0);
	ask(&p, FUSE_INIT, 0, &in, 8); /* too short */
	CHECK(channel_start(p.ch) == -EPROTO);
	ask_raw(&p, &head, sizeof(head)); /* something else */
	CHECK(channel_start(p.ch) == -EPROTO);
	peer_stop(&p);
}

static void start_without_a_mount_fails(void)
{
	struct channel *ch = channel_new(true, ROOT_INO, 10, &fake_ops, -1);

	CHECK(channel_start(ch) == -ENOTCONN);
	channel_free(ch);
}

/* ---- relaying ---------------------------------------------------------------------------------- */

static void a_request_and_its_reply_pass_unchanged(void)
{
	struct peer p;
	struct fuse_statfs_out st = {.st = {.blocks = 1234, .namelen = 255}};
	struct message *m;
	uint64_t unique;

	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_UNLINK, 77, "name", 5);
	m = libfuse_gets(&p);
	CHECK(m->in.opcode == FUSE_UNLINK && m->in.nodeid == 77 && m->in.unique == unique);
	CHECK(m->len == sizeof(m->in) + 5 && memcmp(IN_BODY(m), "name", 5) == 0);
	CHECK(kernel_gets_nothing(&p));
	libfuse_replies(&p, unique, ENOTEMPTY, NULL, 0);
	expect_reply(&p, unique, ENOTEMPTY, 0);

	unique = ask(&p, FUSE_STATFS, 1, NULL, 0);
	libfuse_gets(&p);
	libfuse_replies(&p, unique, 0, &st, sizeof(st));
	m = expect_reply(&p, unique, 0, sizeof(st));
	CHECK(memcmp(BODY(m), &st, sizeof(st)) == 0);
	peer_stop(&p);
}

static void replies_may_come_in_any_order(void)
{
	struct peer p;
	uint64_t first, second;

	peer_start(&p, true, 10);
	first = ask(&p, FUSE_RMDIR, 7, "a", 2);
	second = ask(&p, FUSE_RMDIR, 7, "b", 2);
	libfuse_gets(&p);
	libfuse_gets(&p);
	libfuse_replies(&p, second, 0, NULL, 0);
	libfuse_replies(&p, first, EBUSY, NULL, 0);
	expect_reply(&p, second, 0, 0);
	expect_reply(&p, first, EBUSY, 0);
	peer_stop(&p);
}

static void a_request_that_was_sent_again_keeps_its_mark(void)
{
	struct peer p;

	peer_start(&p, true, 10);
	p.next_unique |= WIRE_UNIQUE_RESEND;
	uint64_t unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
	CHECK(libfuse_gets(&p)->in.unique == unique && (unique & WIRE_UNIQUE_RESEND));
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	peer_stop(&p);
}

/* Bytes behind the fixed part, as libfuse gets them of a request that the kernel sends again. */
static void expect_names(struct peer *p, uint32_t opcode, size_t fixed, const char *sent, size_t len,
			 const char *got, size_t got_len)
{
	char body[64] = {0};
	struct message *m;
	uint64_t unique;

	memcpy(body + fixed, sent, len);
	p->next_unique |= WIRE_UNIQUE_RESEND;
	unique = ask(p, opcode, 7, body, fixed + len);
	m = libfuse_gets(p);
	CHECK(m->in.unique == unique && m->in.len == sizeof(m->in) + fixed + got_len);
	CHECK(!memcmp((char *)IN_BODY(m) + fixed, got, got_len));
	libfuse_replies(p, unique, EIO, NULL, 0);
	expect_reply(p, unique, EIO, 0);
}

static void changes_that_may_have_been_made_already_are_marked(void)
{
	struct peer p;
	struct fuse_setxattr_in set = {.size = 1};
	char value[sizeof(set) + 4] = {0};

	peer_start(&p, true, 10);
	expect_names(&p, FUSE_UNLINK, 0, "a", 2, "/a", 3);
	expect_names(&p, FUSE_RMDIR, 0, "a", 2, "/a", 3);
	expect_names(&p, FUSE_SYMLINK, 0, "a\0to", 5, "/a\0to", 6);
	expect_names(&p, FUSE_MKDIR, sizeof(struct fuse_mkdir_in), "a", 2, "/a", 3);
	expect_names(&p, FUSE_MKNOD, sizeof(struct fuse_mknod_in), "a", 2, "/a", 3);
	expect_names(&p, FUSE_LINK, sizeof(struct fuse_link_in), "a", 2, "/a", 3);
	expect_names(&p, FUSE_CREATE, sizeof(struct fuse_create_in), "a", 2, "/a", 3);
	expect_names(&p, FUSE_RENAME, sizeof(struct fuse_rename_in), "a\0b", 4, "/a\0/b", 6);
	expect_names(&p, FUSE_RENAME2, sizeof(struct fuse_rename2_in), "a\0b", 4, "/a\0/b", 6);
	{
		/* an exchange has its number, too */
		struct fuse_rename2_in in = {.newdir = 7, .flags = RENAME_EXCHANGE};
		char body[sizeof(in) + 4], names[64];
		uint64_t unique;

		memcpy(body, &in, sizeof(in));
		memcpy(body + sizeof(in), "a\0b", 4);
		p.next_unique = 4242;
		for (int again = 0; again < 2; again++) {
			size_t len = (size_t)snprintf(names, sizeof(names), "/4242/%sa%c%sb",
						      again ? "/" : "", 0, again ? "/" : "") + 1;
			struct message *m;

			p.next_unique = 4242 | (again ? WIRE_UNIQUE_RESEND : 0);
			unique = ask(&p, FUSE_RENAME2, 7, body, sizeof(body));
			m = libfuse_gets(&p);
			CHECK(m->in.len == sizeof(m->in) + sizeof(in) + len);
			CHECK(!memcmp((char *)IN_BODY(m) + sizeof(in), names, len));
			libfuse_replies(&p, unique, EIO, NULL, 0);
			expect_reply(&p, unique, EIO, 0);
		}
	}
	expect_names(&p, FUSE_REMOVEXATTR, 0, "user.a", 7, "//user.a", 9);
	expect_names(&p, FUSE_LOOKUP, 0, "a", 2, "a", 2); /* changes nothing */

	memcpy(value, &set, sizeof(set));
	memcpy(value + sizeof(set), "u.a", 4);
	CHECK(p.ch->setxattr_head == sizeof(set));
	uint64_t unique = ask(&p, FUSE_SETXATTR, 7, value, sizeof(value));
	expect_reply(&p, unique, EINVAL, 0); /* the value is missing */
	peer_stop(&p);
}

static void an_attribute_that_is_set_again_is_marked_in_its_short_form(void)
{
	struct peer p;
	struct {
		struct fuse_setxattr_in in;
		char rest[5];
	} set = {.in = {.size = 1, .flags = 1}, .rest = "u.a\0v"};
	struct message *m;
	uint64_t unique;

	memcpy(set.rest, "u.a\0v", 5);
	peer_start(&p, true, 10);
	p.next_unique |= WIRE_UNIQUE_RESEND;
	unique = ask(&p, FUSE_SETXATTR, 7, &set, offsetof(__typeof__(set), rest) + 5);
	m = libfuse_gets(&p);
	CHECK(m->in.len == sizeof(m->in) + FUSE_COMPAT_SETXATTR_IN_SIZE + 7);
	CHECK(!memcmp((char *)IN_BODY(m) + FUSE_COMPAT_SETXATTR_IN_SIZE, "//u.a\0v", 7));
	CHECK(((uint32_t *)IN_BODY(m))[1] == 0); /* XATTR_CREATE is gone: pyfuse3 would look first */
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	peer_stop(&p);
}

static void a_request_under_which_daemons_die_is_given_up(void)
{
	struct peer p;
	int relayed = 0;

	peer_start(&p, true, 10);
	for (int i = 0; i < 20; i++) {
		uint64_t unique;

		p.next_unique = 4242 | WIRE_UNIQUE_RESEND;
		unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
		if (poll(&(struct pollfd){.fd = p.ch->daemon_fd, .events = POLLIN}, 1, 200) > 0) {
			CHECK(libfuse_gets(&p)->in.unique == unique);
			libfuse_replies(&p, unique, 0, NULL, 0);
			expect_reply(&p, unique, 0, 0);
			relayed++;
		} else {
			expect_reply(&p, unique, EIO, 0);
		}
	}
	CHECK(relayed == 16);
	p.next_unique = 5000 | WIRE_UNIQUE_RESEND; /* another one */
	CHECK(ask(&p, FUSE_RMDIR, 7, "b", 2) == libfuse_gets(&p)->in.unique);
	peer_stop(&p);
}

static void an_open_that_comes_again_is_counted_once(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct unacked *unacked;
	struct open_answer answer;
	struct node_opens s;
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_SHARED, READ_CACHED, false, 0) == 0);
	/* told to the kernel by a daemon that did not live to see it */
	CHECK(nodes_opened(&p.ch->nodes, 5, false, p.next_unique, &answer, &unacked));
	p.next_unique |= WIRE_UNIQUE_RESEND;
	unique = ask(&p, FUSE_OPEN, 5, &in, sizeof(in));
	expect_reply(&p, unique, 0, sizeof(struct wire_open_out));
	CHECK(nodes_revoke(&p.ch->nodes, 5, &s) && s.readers == 1);
	peer_stop(&p);
}

static void drain_does_nothing_when_nothing_is_expected(void)
{
	struct peer p;
	struct fuse_out_header stray = {.len = sizeof(stray), .unique = 4242};

	peer_start(&p, true, 10);
	CHECK(channel_drain(p.ch) == 0);
	libfuse_sends_raw(&p, &stray, sizeof(stray)); /* stays in the socket, unread */
	CHECK(kernel_gets_nothing(&p));
	uint64_t unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
	libfuse_gets(&p);
	libfuse_replies(&p, unique, 0, NULL, 0); /* the stray one is dropped on the way */
	expect_reply(&p, unique, 0, 0);
	CHECK(kernel_gets_nothing(&p));
	peer_stop(&p);
}

static void listings_and_directory_syncs_get_the_node_as_handle(void)
{
	struct fuse_read_in list = {.fh = 0, .offset = 17, .size = 1 << 20};
	struct fuse_fsync_in sync = {.fh = 0, .fsync_flags = 1};
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_READDIRPLUS, 55, &list, sizeof(list));
	memcpy(&list, IN_BODY(libfuse_gets(&p)), sizeof(list));
	CHECK(list.fh == 55 && list.offset == 17 && list.size == READDIR_MAX);
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);

	unique = ask(&p, FUSE_FSYNCDIR, 56, &sync, sizeof(sync));
	memcpy(&sync, IN_BODY(libfuse_gets(&p)), sizeof(sync));
	CHECK(sync.fh == 56 && sync.fsync_flags == 1);
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	peer_stop(&p);
}

static void forgets_are_relayed_and_batches_split(void)
{
	enum { COUNT = 10000 };
	struct {
		struct fuse_batch_forget_in head;
		struct fuse_forget_one one[COUNT];
	} *batch = calloc(1, sizeof(*batch));
	struct fuse_forget_in single = {.nlookup = 3};
	struct peer p;
	uint32_t seen = 0;

	peer_start(&p, true, 10);
	ask(&p, FUSE_FORGET, 9, &single, sizeof(single));
	struct message *m = libfuse_gets(&p);
	CHECK(m->in.opcode == FUSE_FORGET && m->in.nodeid == 9);

	batch->head.count = COUNT;
	for (uint64_t i = 0; i < COUNT; i++)
		batch->one[i] = (struct fuse_forget_one){.nodeid = 100 + i, .nlookup = i};
	ask(&p, FUSE_BATCH_FORGET, 0, batch, sizeof(*batch));
	while (seen < COUNT) {
		struct fuse_batch_forget_in head;
		m = libfuse_gets(&p);
		CHECK(m->in.opcode == FUSE_BATCH_FORGET && m->in.len == m->len);
		CHECK(m->len <= RELAY_MAX);
		memcpy(&head, IN_BODY(m), sizeof(head));
		CHECK(m->len == sizeof(m->in) + sizeof(head) + head.count * 16);
		for (uint32_t i = 0; i < head.count; i++, seen++) {
			struct fuse_forget_one one;
			memcpy(&one, m->bytes + sizeof(m->in) + sizeof(head) + 16 * i, 16);
			CHECK(one.nodeid == 100 + seen && one.nlookup == seen);
		}
	}
	CHECK(seen == COUNT && libfuse_gets_nothing(&p) && kernel_gets_nothing(&p));
	free(batch);
	peer_stop(&p);
}

static void requests_that_nobody_serves_are_refused_here(void)
{
	static const struct {
		uint32_t opcode;
		int error;
	} refused[] = {
		{FUSE_OPENDIR, ENOSYS}, {FUSE_RELEASEDIR, 0},	  {FUSE_READDIR, ENOSYS},
		{FUSE_INTERRUPT, ENOSYS}, {FUSE_GETLK, ENOSYS},	  {FUSE_SETLK, ENOSYS},
		{FUSE_SETLKW, ENOSYS},	{FUSE_BMAP, ENOSYS},	  {FUSE_IOCTL, ENOTTY},
		{FUSE_POLL, ENOSYS},	{FUSE_SETUPMAPPING, ENOSYS}, {FUSE_SYNCFS, ENOSYS},
			  {FUSE_DESTROY, 0},
		{FUSE_INIT, EIO},	{63, ENOSYS},		  {100000, ENOSYS},
	};
	char body[128] = {0};
	struct peer p;

	peer_start(&p, true, 10);
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
		uint64_t unique = ask(&p, refused[i].opcode, 1, body, sizeof(body));
		expect_reply(&p, unique, refused[i].error, 0);
	}
	ask(&p, FUSE_NOTIFY_REPLY, 1, body, sizeof(body));
	CHECK(kernel_gets_nothing(&p) && libfuse_gets_nothing(&p));
	peer_stop(&p);
}

static void counters_tell_who_answered(void)
{
	struct peer p;
	uint64_t unique;
	struct counter *k;

	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
	libfuse_gets(&p);
	libfuse_replies(&p, unique, ENOTDIR, NULL, 0);
	expect_reply(&p, unique, ENOTDIR, 0);
	k = &p.ch->counters->by_opcode[FUSE_RMDIR];
	CHECK(k->count == 1 && k->errors == 1 && k->answered_here == 0 && k->total_ns > 0);
	CHECK(k->max_ns == k->total_ns);
	release_node(&p, 99, O_RDONLY); /* unknown: answered all the same */
	k = &p.ch->counters->by_opcode[FUSE_RELEASE];
	CHECK(k->count == 1 && k->errors == 0);
	peer_stop(&p);
}

/* ---- inode numbers ----------------------------------------------------------------------------- */

static uint64_t ino_after_lookup(struct peer *p, uint32_t opcode, uint64_t nodeid)
{
	char body[32] = {0};
	struct fuse_entry_out e = {.nodeid = nodeid, .attr = {.ino = nodeid}};
	size_t fixed = opcode_info(opcode)->min_body;
	uint64_t unique;

	strcpy(body + fixed, "n"); /* and for SYMLINK an empty target after it */
	unique = ask(p, opcode, 1, body, fixed + 4);
	libfuse_gets(p);
	libfuse_replies(p, unique, 0, &e, sizeof(e));
	memcpy(&e, BODY(expect_reply(p, unique, 0, sizeof(e))), sizeof(e));
	CHECK(e.nodeid == nodeid);
	return e.attr.ino;
}

static void entries_show_their_node_id_as_the_inode_number(void)
{
	static const uint32_t opcodes[] = {FUSE_LOOKUP, FUSE_MKNOD, FUSE_MKDIR, FUSE_SYMLINK,
					   FUSE_LINK};
	struct peer p;

	peer_start(&p, true, 10);
	for (size_t i = 0; i < sizeof(opcodes) / sizeof(*opcodes); i++) {
		CHECK(ino_after_lookup(&p, opcodes[i], 1234) == 1234);
		CHECK(ino_after_lookup(&p, opcodes[i], LARGE(3) | 1234) == (LARGE(3) | 1234));
		CHECK(ino_after_lookup(&p, opcodes[i], 1) == ROOT_INO);
		CHECK(ino_after_lookup(&p, opcodes[i], 0) == 0); /* a name that does not exist */
	}
	peer_stop(&p);
}

static void attributes_show_the_inode_number_of_the_node_asked_for(void)
{
	char body[128] = {0};
	static const uint64_t nodes[] = {1, 77, LARGE(2) | 77};
	static const uint64_t shown[] = {ROOT_INO, 77, LARGE(2) | 77};
	struct peer p;

	peer_start(&p, true, 10);
	for (int i = 0; i < 3; i++) {
		for (int set = 0; set < 2; set++) {
			uint32_t opcode = set ? FUSE_SETATTR : FUSE_GETATTR;
			struct fuse_attr_out out = {.attr = {.ino = nodes[i], .size = 5}};
			uint64_t unique = ask(&p, opcode, nodes[i], body, set ? 88 : 16);
			libfuse_gets(&p);
			libfuse_replies(&p, unique, 0, &out, sizeof(out));
			memcpy(&out, BODY(expect_reply(&p, unique, 0, sizeof(out))), sizeof(out));
			CHECK(out.attr.ino == shown[i] && out.attr.size == 5);
		}
	}
	peer_stop(&p);
}

static size_t put_entry(uint8_t *at, uint64_t nodeid, uint64_t ino, const char *name)
{
	struct fuse_direntplus d = {
		.entry_out = {.nodeid = nodeid, .attr = {.ino = ino}},
		.dirent = {.ino = ino, .off = 1, .namelen = (uint32_t)strlen(name)}};
	size_t size = FUSE_DIRENTPLUS_SIZE(&d);

	memset(at, 0, size);
	memcpy(at, &d, FUSE_NAME_OFFSET_DIRENTPLUS);
	memcpy(at + FUSE_NAME_OFFSET_DIRENTPLUS, name, strlen(name));
	return size;
}

static uint64_t list(struct peer *p)
{
	struct fuse_read_in in = {.size = 4096};
	uint64_t unique = ask(p, FUSE_READDIRPLUS, 1, &in, sizeof(in));

	libfuse_gets(p);
	return unique;
}

static void listings_show_inode_numbers_in_both_places(void)
{
	static const struct {
		uint64_t nodeid, ino, shown;
	} e[] = {{0, 1, ROOT_INO}, {1, 1, ROOT_INO}, {5, 5, 5}, {LARGE(7) | 6, LARGE(7) | 6, LARGE(7) | 6},
		 {0, 8, 8}};
	static const char *names[] = {"..", ".", "five", "a-replaced-file.safetensors", "x"};
	uint8_t buffer[2048];
	size_t len = 0;
	struct peer p;
	struct message *m;
	uint64_t unique;
	uint8_t *at;

	for (int i = 0; i < 5; i++)
		len += put_entry(buffer + len, e[i].nodeid, e[i].ino, names[i]);
	peer_start(&p, true, 10);
	unique = list(&p);
	libfuse_replies(&p, unique, 0, buffer, len);
	m = expect_reply(&p, unique, 0, len);
	at = BODY(m);
	for (int i = 0; i < 5; i++) {
		struct fuse_direntplus d;
		memcpy(&d, at, FUSE_NAME_OFFSET_DIRENTPLUS);
		CHECK(d.entry_out.nodeid == e[i].nodeid);
		CHECK(d.entry_out.attr.ino == e[i].shown && d.dirent.ino == e[i].shown);
		CHECK(memcmp(at + FUSE_NAME_OFFSET_DIRENTPLUS, names[i], strlen(names[i])) == 0);
		at += FUSE_DIRENTPLUS_SIZE(&d);
	}
	unique = list(&p); /* the end of the directory */
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	peer_stop(&p);
}

/* ---- OPEN and CREATE ---------------------------------------------------------------------------- */

static void open_is_completed_with_handle_flags_and_backing_id(void)
{
	struct peer p;
	struct wire_open_out out;
	uint64_t first;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_PRIVATE, READ_PASSTHROUGH, true, 0) == 0);
	out = relayed_open(&p, 5, O_RDWR);
	first = out.fh;
	CHECK(out.backing_id > 0);
	CHECK(out.open_flags == (FOPEN_PASSTHROUGH | FOPEN_NOFLUSH));
	release_node(&p, 5, O_RDWR);
	CHECK(fake_ids_open == 0);

	CHECK(nodes_attach(&p.ch->nodes, 6, scratch_file(""), NODE_SHARED, READ_CACHED, false, 0) == 0);
	out = relayed_open(&p, 6, O_RDWR); /* an open for writing is always relayed */
	CHECK(out.fh != first && out.backing_id == 0);
	CHECK(out.open_flags == (FOPEN_KEEP_CACHE | FOPEN_NOFLUSH));
	peer_stop(&p);
}

static void create_is_completed_for_the_new_node(uint32_t opcode, const char *name)
{
	struct fuse_create_in in = {.flags = O_RDWR | O_CREAT};
	size_t len = sizeof(in) + strlen(name) + 1;
	char body[sizeof(in) + 8];
	struct wire_create_out out = {.entry = {.nodeid = LARGE(1) | 31,
						.attr = {.ino = LARGE(1) | 31}}};
	struct message *m;
	struct peer p;
	uint64_t unique;

	memcpy(body, &in, sizeof(in));
	strcpy(body + sizeof(in), name);
	peer_start(&p, true, 10);
	unique = ask(&p, opcode, 1, body, len);
	m = libfuse_gets(&p);
	CHECK(m->in.opcode == FUSE_CREATE && m->len == sizeof(m->in) + len);
	CHECK(memcmp(IN_BODY(m), body, len) == 0);
	CHECK(nodes_attach(&p.ch->nodes, LARGE(1) | 31, scratch_file(""), NODE_PRIVATE, READ_PASSTHROUGH,
			   true, 0) == 0);
	libfuse_replies(&p, unique, 0, &out, sizeof(out));
	memcpy(&out, BODY(expect_reply(&p, unique, 0, sizeof(out))), sizeof(out));
	CHECK(out.entry.nodeid == (LARGE(1) | 31) && out.entry.attr.ino == (LARGE(1) | 31));
	CHECK(out.open.fh == unique / 2 && out.open.backing_id > 0);
	CHECK(out.open.open_flags == (FOPEN_PASSTHROUGH | FOPEN_NOFLUSH));
	CHECK(nodes_writers(&p.ch->nodes, LARGE(1) | 31) == 1);
	release_node(&p, LARGE(1) | 31, O_RDWR);
	peer_stop(&p);
}

static void create_and_tmpfile_are_completed_for_the_new_node(void)
{
	create_is_completed_for_the_new_node(FUSE_CREATE, "new");
	create_is_completed_for_the_new_node(FUSE_TMPFILE, "/");
}

static void setxattr_reaches_libfuse_in_its_short_form(void)
{
	static const char rest[] = "user.a\0word"; /* a name of 7 bytes, a value of 4 */
	struct {
		struct fuse_setxattr_in in;
		char rest[16];
	} body = {.in = {.size = 4, .flags = 1}};
	struct peer p;

	memcpy(body.rest, rest, 11);
	peer_start(&p, true, 10);
	for (uint32_t slash = 0; slash <= 1; slash++) {
		uint64_t unique;
		struct message *m;
		uint32_t head[2];
		char *at;

		body.in.setxattr_flags = slash ? FUSE_SETXATTR_ACL_KILL_SGID : 0;
		unique = ask(&p, FUSE_SETXATTR, 3, &body, sizeof(body.in) + 11);
		m = libfuse_gets(&p);
		CHECK(m->len == sizeof(m->in) + 8 + slash + 11 && m->in.len == m->len);
		memcpy(head, IN_BODY(m), sizeof(head));
		CHECK(head[0] == 4 && head[1] == 1);
		at = (char *)IN_BODY(m) + 8;
		CHECK(!slash || *at == '/');
		CHECK(memcmp(at + slash, rest, 11) == 0);
		libfuse_replies(&p, unique, 0, NULL, 0);
		expect_reply(&p, unique, 0, 0);
	}
	body.rest[0] = '/'; /* a user's own */
	expect_reply(&p, ask(&p, FUSE_SETXATTR, 3, &body, sizeof(body.in) + 11), EOPNOTSUPP, 0);
	memcpy(body.rest, "fuse_stacktrace", 16);
	body.in.size = 0;
	expect_reply(&p, ask(&p, FUSE_SETXATTR, 1, &body, sizeof(body.in) + 16), EOPNOTSUPP, 0);
	CHECK(libfuse_gets_nothing(&p));
	peer_stop(&p);
}

/* The kernel checks rights by the name that it sees: none may become another one here. */
static void a_user_cannot_mark_the_name_of_an_attribute(void)
{
	struct peer p;
	uint64_t again;

	peer_start(&p, true, 10);
	expect_reply(&p, ask(&p, FUSE_REMOVEXATTR, 3, "//trusted.a", 12), EOPNOTSUPP, 0);
	p.next_unique |= WIRE_UNIQUE_RESEND;
	again = ask(&p, FUSE_REMOVEXATTR, 3, "/trusted.a", 11);
	expect_reply(&p, again, EOPNOTSUPP, 0);
	CHECK(libfuse_gets_nothing(&p));
	peer_stop(&p);
}

static void statx_is_asked_for_as_an_attribute(void)
{
	struct fuse_statx_in in = {.sx_mask = 0xfff};
	struct {
		struct fuse_getxattr_in in;
		char name[7];
	} __attribute__((packed)) user = {.in = {.size = 1000}, .name = "/statx"}, *asked;
	struct wire_statx_out out = {.ino = 99, .before_ino = "before", .after_ino = "after"}, got;
	struct message *m;
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_STATX, LARGE(2) | 31, &in, sizeof(in));
	m = libfuse_gets(&p);
	asked = IN_BODY(m);
	CHECK(m->in.opcode == FUSE_GETXATTR && m->len == sizeof(m->in) + sizeof(user));
	CHECK(asked->in.size == sizeof(out) && memcmp(asked->name, "/statx", 7) == 0);
	libfuse_replies(&p, unique, 0, &out, sizeof(out));
	memcpy(&got, BODY(expect_reply(&p, unique, 0, sizeof(out))), sizeof(got));
	CHECK(got.ino == (LARGE(2) | 31));
	CHECK(memcmp(got.before_ino, out.before_ino, sizeof(out.before_ino)) == 0);
	CHECK(memcmp(got.after_ino, out.after_ino, sizeof(out.after_ino)) == 0);

	unique = ask(&p, FUSE_STATX, 31, &in, sizeof(in));
	libfuse_gets(&p);
	libfuse_replies(&p, unique, 0, &out, sizeof(out) - 1);
	expect_reply(&p, unique, EIO, 0);
	expect_reply(&p, ask(&p, FUSE_GETXATTR, 31, &user, sizeof(user)), EOPNOTSUPP, 0);
	peer_stop(&p);
}

static void fsync_of_a_file_of_the_template_is_relayed(void)
{
	struct fuse_fsync_in in = {.fh = 5, .fsync_flags = FUSE_FSYNC_FDATASYNC}, got;
	struct message *m;
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 6, scratch_file(""), NODE_SHARED, READ_PASSTHROUGH, false, 0) == 0);
	unique = ask(&p, FUSE_FSYNC, 6, &in, sizeof(in));
	m = libfuse_gets(&p);
	CHECK(m->in.opcode == FUSE_FSYNC);
	memcpy(&got, IN_BODY(m), sizeof(got));
	CHECK(got.fh == 6 && got.fsync_flags == FUSE_FSYNC_FDATASYNC);
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	peer_stop(&p);
}

static void an_open_that_nothing_backs_fails(void)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	struct wire_open_out out = {0};
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_OPEN, 5, &in, sizeof(in));
	libfuse_gets(&p);
	libfuse_replies(&p, unique, 0, &out, sizeof(out));
	expect_reply(&p, unique, EIO, 0);
	peer_stop(&p);
}

static void an_open_that_python_refuses_counts_nothing(void)
{
	struct fuse_open_in in = {.flags = O_WRONLY};
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_PRIVATE, READ_PASSTHROUGH, true, 0) == 0);
	unique = ask(&p, FUSE_OPEN, 5, &in, sizeof(in));
	libfuse_gets(&p);
	libfuse_replies(&p, unique, ESTALE, NULL, 0);
	expect_reply(&p, unique, ESTALE, 0);
	CHECK(nodes_writers(&p.ch->nodes, 5) == 1); /* the one of attach */
	peer_stop(&p);
}

static void repeat_opens_are_answered_without_python(void)
{
	struct peer p;
	struct open_answer answer;
	struct unacked *unacked;
	struct wire_open_out first, again;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_SHARED, READ_PASSTHROUGH, false, 0) == 0);
	CHECK(nodes_opened(&p.ch->nodes, 5, false, 1, &answer, &unacked));
	ledger_acknowledge(unacked);
	first = repeat_open(&p, 5);
	release_node(&p, 5, O_RDONLY);
	release_node(&p, 5, O_RDONLY);
	CHECK(p.ch->nodes.cached == 1);
	again = repeat_open(&p, 5);
	CHECK(again.fh != first.fh && again.backing_id == first.backing_id);
	CHECK(p.ch->counters->by_opcode[FUSE_OPEN].answered_here == 2);
	CHECK(libfuse_gets_nothing(&p));
	peer_stop(&p);
}

static void a_primed_lookup_is_answered_once_without_python(void)
{
	struct peer p;
	struct fuse_entry_out entry = {.nodeid = 55, .attr = {.ino = 55}};
	uint64_t evicted;
	struct message *m;
	uint64_t unique;

	peer_start(&p, true, 16);
	CHECK(primed_add(&p.ch->primed, 1, "name", 4, &entry, &evicted));
	unique = ask(&p, FUSE_LOOKUP, 1, "name", 5);
	m = expect_reply(&p, unique, 0, sizeof(entry));
	CHECK(((struct fuse_entry_out *)BODY(m))->nodeid == 55);
	unique = ask(&p, FUSE_LOOKUP, 1, "name", 5);
	m = libfuse_gets(&p);
	CHECK(m->in.unique == unique);
	libfuse_replies(&p, unique, ENOENT, NULL, 0);
	expect_reply(&p, unique, ENOENT, 0);
	peer_stop(&p);
}

static void opens_that_may_change_the_file_are_relayed(void)
{
	static const uint32_t flags[] = {O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC, O_WRONLY | O_APPEND};
	struct peer p;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_SHARED, READ_PASSTHROUGH, false, 0) == 0);
	for (int i = 0; i < 4; i++) {
		struct fuse_open_in in = {.flags = flags[i]};
		uint64_t unique = ask(&p, FUSE_OPEN, 5, &in, sizeof(in));
		CHECK(libfuse_gets(&p)->in.unique == unique);
		libfuse_replies(&p, unique, ESTALE, NULL, 0);
		expect_reply(&p, unique, ESTALE, 0);
	}
	peer_stop(&p);
}

static void a_revoked_node_is_relayed_again(void)
{
	struct peer p;
	struct node_opens s;
	struct open_answer answer;
	struct unacked *unacked;
	struct fuse_open_in in = {.flags = O_RDONLY};
	uint64_t unique;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_SHARED, READ_PASSTHROUGH, false, 0) == 0);
	CHECK(nodes_opened(&p.ch->nodes, 5, false, 1, &answer, &unacked));
	ledger_acknowledge(unacked);
	repeat_open(&p, 5);
	CHECK(nodes_revoke(&p.ch->nodes, 5, &s) && s.readers == 2);
	unique = ask(&p, FUSE_OPEN, 5, &in, sizeof(in));
	CHECK(libfuse_gets(&p)->in.unique == unique);
	libfuse_replies(&p, unique, ESTALE, NULL, 0);
	expect_reply(&p, unique, ESTALE, 0);
	release_node(&p, 5, O_RDONLY);
	release_node(&p, 5, O_RDONLY);
	CHECK(fake_ids_open == 0);
	peer_stop(&p);
}

static void an_open_reply_that_cannot_be_delivered_counts_back(void)
{
	struct fuse_open_in in = {.flags = O_RDWR};
	struct wire_open_out out = {0};
	struct pollfd gone;
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file(""), NODE_PRIVATE, READ_PASSTHROUGH, true, 0) == 0);
	unique = ask(&p, FUSE_OPEN, 5, &in, sizeof(in));
	libfuse_gets(&p);
	peer_hang_up(&p);
	libfuse_replies(&p, unique, 0, &out, sizeof(out));
	CHECK(nodes_writers(&p.ch->nodes, 5) == 0 && fake_ids_open == 0);
	gone = (struct pollfd){.fd = p.ch->closed_fd, .events = POLLIN};
	CHECK(poll(&gone, 1, 10000) == 1);
	peer_stop(&p);
}

/* ---- notifications ------------------------------------------------------------------------------ */

static void notifications_reach_the_kernel(void)
{
	struct {
		struct fuse_notify_inval_entry_out out;
		char name[6];
	} entry;
	struct fuse_notify_inval_inode_out inode;
	struct peer p;
	struct message *m;

	peer_start(&p, true, 10);
	CHECK(notify_inval_entry(p.ch, 7, "model", 5) == 0);
	m = kernel_gets(&p);
	CHECK(m->out.unique == 0 && m->out.error == FUSE_NOTIFY_INVAL_ENTRY);
	CHECK(m->len == m->out.len && m->len == 16 + 16 + 6);
	memcpy(&entry, BODY(m), 22);
	CHECK(entry.out.parent == 7 && entry.out.namelen == 5 && !strcmp(entry.name, "model"));

	CHECK(notify_inval_attr(p.ch, 9) == 0);
	m = kernel_gets(&p);
	CHECK(m->out.unique == 0 && m->out.error == FUSE_NOTIFY_INVAL_INODE && m->len == 40);
	memcpy(&inode, BODY(m), sizeof(inode));
	CHECK(inode.ino == 9 && inode.off == -1);

	for (int i = 0; i < 100; i++)
		CHECK(notify_inval_entry(p.ch, i, "n", 1) == 0);
	for (uint64_t i = 0; i < 100; i++) {
		memcpy(&entry, BODY(kernel_gets(&p)), 18);
		CHECK(entry.out.parent == i); /* in order */
	}
	peer_stop(&p);
}

static void impossible_names_are_not_announced(void)
{
	char longer[300];
	struct peer p;

	memset(longer, 'x', sizeof(longer));
	peer_start(&p, true, 10);
	CHECK(notify_inval_entry(p.ch, 1, "", 0) == -EINVAL);
	CHECK(notify_inval_entry(p.ch, 1, "a/b", 3) == -EINVAL);
	CHECK(notify_inval_entry(p.ch, 1, "a\0b", 3) == -EINVAL);
	CHECK(notify_inval_entry(p.ch, 1, longer, 256) == -EINVAL);
	CHECK(notify_inval_entry(p.ch, 1, longer, 255) == 0);
	CHECK(kernel_gets(&p)->len == 16 + 16 + 256);
	peer_stop(&p);
}

static void notifications_of_libfuse_are_passed_on(void)
{
	struct {
		struct fuse_out_header head;
		uint64_t body[4];
	} n = {.head = {.len = sizeof(n)}, .body = {3, 4, 5, 6}};
	static const int kinds[] = {FUSE_NOTIFY_INVAL_INODE, FUSE_NOTIFY_INVAL_ENTRY,
				    FUSE_NOTIFY_DELETE};
	struct peer p;
	uint64_t unique;

	peer_start(&p, true, 10);
	unique = ask(&p, FUSE_RMDIR, 7, "a", 2);
	libfuse_gets(&p);
	for (int i = 0; i < 3; i++) {
		struct message *m;
		n.head.error = kinds[i];
		libfuse_sends_raw(&p, &n, sizeof(n));
		m = kernel_gets(&p);
		CHECK(m->len == sizeof(n) && memcmp(m->bytes, &n, sizeof(n)) == 0);
	}
	n.head.error = FUSE_NOTIFY_POLL;
	libfuse_sends_raw(&p, &n, sizeof(n));
	CHECK(kernel_gets_nothing(&p));
	libfuse_replies(&p, unique, 0, NULL, 0);
	expect_reply(&p, unique, 0, 0);
	peer_stop(&p);
}

int main(void)
{
	RUN(init_asks_the_kernel_for_passthrough);
	RUN(a_read_is_as_large_as_a_write_whatever_a_page_is);
	RUN(init_takes_only_what_an_older_kernel_offers);
	RUN(init_leaves_passthrough_when_told_so);
	RUN(libfuse_gets_an_init_that_makes_it_read_instead_of_splice);
	RUN(what_is_no_init_is_refused);
	RUN(start_without_a_mount_fails);
	RUN(a_request_and_its_reply_pass_unchanged);
	RUN(replies_may_come_in_any_order);
	RUN(a_request_that_was_sent_again_keeps_its_mark);
	RUN(changes_that_may_have_been_made_already_are_marked);
	RUN(an_attribute_that_is_set_again_is_marked_in_its_short_form);
	RUN(an_open_that_comes_again_is_counted_once);
	RUN(a_request_under_which_daemons_die_is_given_up);
	RUN(drain_does_nothing_when_nothing_is_expected);
	RUN(listings_and_directory_syncs_get_the_node_as_handle);
	RUN(forgets_are_relayed_and_batches_split);
	RUN(requests_that_nobody_serves_are_refused_here);
	RUN(counters_tell_who_answered);
	RUN(entries_show_their_node_id_as_the_inode_number);
	RUN(attributes_show_the_inode_number_of_the_node_asked_for);
	RUN(listings_show_inode_numbers_in_both_places);
	RUN(open_is_completed_with_handle_flags_and_backing_id);
	RUN(create_and_tmpfile_are_completed_for_the_new_node);
	RUN(setxattr_reaches_libfuse_in_its_short_form);
	RUN(a_user_cannot_mark_the_name_of_an_attribute);
	RUN(statx_is_asked_for_as_an_attribute);
	RUN(fsync_of_a_file_of_the_template_is_relayed);
	RUN(an_open_that_nothing_backs_fails);
	RUN(an_open_that_python_refuses_counts_nothing);
	RUN(repeat_opens_are_answered_without_python);
	RUN(a_primed_lookup_is_answered_once_without_python);
	RUN(opens_that_may_change_the_file_are_relayed);
	RUN(a_revoked_node_is_relayed_again);
	RUN(an_open_reply_that_cannot_be_delivered_counts_back);
	RUN(notifications_reach_the_kernel);
	RUN(impossible_names_are_not_announced);
	RUN(notifications_of_libfuse_are_passed_on);
	return 0;
}
