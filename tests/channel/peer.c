#include "peer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_MS 10000
#define MOMENT_MS 50

/* ---- backing ids ------------------------------------------------------------------------------- */

#define MAX_IDS (1 << 20)

_Atomic int fake_open_error;
_Atomic uint64_t fake_unknown;
_Atomic int fake_ids_open;
static _Atomic int last_id;
static _Atomic bool id_is_open[MAX_IDS];

static int fake_open(int dev_fd, int fd)
{
	(void)dev_fd;
	(void)fd;
	if (fake_open_error)
		return -fake_open_error;
	fake_ids_open++;
	int id = ++last_id;
	CHECK(id < MAX_IDS);
	id_is_open[id] = true;
	return id;
}

static int fake_close(int dev_fd, int32_t id)
{
	(void)dev_fd;
	CHECK(id > 0);
	if (id >= MAX_IDS || !atomic_exchange(&id_is_open[id], false))
		return -ENOENT;
	fake_ids_open--;
	return 0;
}

static bool fake_knows(int dev_fd, uint64_t nodeid)
{
	(void)dev_fd;
	return nodeid != fake_unknown;
}

const struct backing_ops fake_ops = {
	.open = fake_open, .close = fake_close, .knows = fake_knows};

/* ---- running ----------------------------------------------------------------------------------- */

static int descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	CHECK(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

void run(const char *name, void (*test)(void))
{
	uint64_t start;
	int before;

	signal(SIGPIPE, SIG_IGN); /* as in Python; /dev/fuse knows no such thing */
	before = descriptors();
	printf("%s", name);
	fflush(stdout);
	start = now_ns();
	test();
	printf(" (%.2f s)\n", (double)(now_ns() - start) / 1e9);
	CHECK(descriptors() == before);
	CHECK(fake_ids_open == 0);
	fake_open_error = 0;
}

/* ---- the channel's life ------------------------------------------------------------------------ */

void peer_new(struct peer *p, bool passthrough, uint32_t max_cached)
{
	int pair[2];
	int size = 8 * 1024 * 1024;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	for (int i = 0; i < 2; i++)
		if (setsockopt(pair[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
			setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	p->ch = channel_new(passthrough, ROOT_INO, max_cached, &fake_ops, -1);
	CHECK(p->ch);
	p->kernel = pair[0];
	p->next_unique = 2;
	channel_adopt(p->ch, pair[1]);
}

static void exchange_init(struct peer *p)
{
	struct wire_init_in_ext in = {
		.base = {.major = 7, .minor = 45, .max_readahead = 131072, .flags = UINT32_MAX},
		.flags2 = UINT32_MAX,
	};
	struct wire_init_out libfuse = {.major = 7, .minor = 31};
	uint64_t unique = ask(p, FUSE_INIT, 0, &in, sizeof(in));

	CHECK(channel_start(p->ch) == 0);
	expect_reply(p, unique, 0, sizeof(struct wire_init_out));
	CHECK(libfuse_gets(p)->in.opcode == FUSE_INIT);
	libfuse_replies(p, unique, 0, &libfuse, sizeof(libfuse));
	CHECK(atomic_load(&p->ch->libfuse_alive));
	CHECK(kernel_gets_nothing(p));
}

void peer_start(struct peer *p, bool passthrough, uint32_t max_cached)
{
	peer_new(p, passthrough, max_cached);
	exchange_init(p);
}

void peer_hang_up(struct peer *p)
{
	if (p->kernel >= 0)
		close(p->kernel);
	p->kernel = -1;
}

void peer_stop(struct peer *p)
{
	int daemon_fd = p->ch->daemon_fd;
	bool ours = atomic_load(&p->ch->libfuse_alive);

	channel_free(p->ch);
	if (ours) /* pyfuse3.close() would have done it */
		CHECK(close(daemon_fd) == 0);
	peer_hang_up(p);
}

/* ---- messages ---------------------------------------------------------------------------------- */

void ask_raw(struct peer *p, const void *bytes, size_t len)
{
	CHECK(send(p->kernel, bytes, len, 0) == (ssize_t)len);
}

uint64_t ask(struct peer *p, uint32_t opcode, uint64_t nodeid, const void *body, size_t len)
{
	struct fuse_in_header head = {.len = (uint32_t)(sizeof(head) + len),
				      .opcode = opcode,
				      .unique = p->next_unique,
				      .nodeid = nodeid};
	struct iovec iov[2] = {{&head, sizeof(head)}, {(void *)(uintptr_t)body, len}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = len ? 2 : 1};

	p->next_unique += 2;
	CHECK(sendmsg(p->kernel, &msg, 0) == (ssize_t)head.len);
	return head.unique;
}

static bool comes(int fd, int ms)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	int n;

	do
		n = poll(&pfd, 1, ms);
	while (n < 0 && errno == EINTR);
	return n > 0;
}

static struct message *gets_from(int fd, struct message *m)
{
	ssize_t n;

	CHECK(comes(fd, PATIENCE_MS));
	n = recv(fd, m->bytes, sizeof(m->bytes), 0);
	CHECK(n >= 0);
	m->len = (size_t)n;
	return m;
}

struct message *kernel_gets(struct peer *p)
{
	static struct message m;
	return gets_from(p->kernel, &m);
}

struct message *libfuse_gets(struct peer *p)
{
	static struct message m;
	return gets_from(p->ch->daemon_fd, &m);
}

bool kernel_gets_nothing(struct peer *p)
{
	return !comes(p->kernel, MOMENT_MS);
}

bool libfuse_gets_nothing(struct peer *p)
{
	return !comes(p->ch->daemon_fd, MOMENT_MS);
}

void discard(struct peer *p)
{
	uint8_t sink[RELAY_MAX];

	while (recv(p->kernel, sink, sizeof(sink), MSG_DONTWAIT) > 0)
		;
	while (recv(p->ch->daemon_fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
		;
}

void libfuse_sends_raw(struct peer *p, const void *bytes, size_t len)
{
	CHECK(send(p->ch->daemon_fd, bytes, len, MSG_NOSIGNAL) == (ssize_t)len);
	channel_drain(p->ch);
}

void libfuse_replies(struct peer *p, uint64_t unique, int error, const void *body, size_t len)
{
	struct message *m = malloc(sizeof(*m));

	CHECK(m && len <= sizeof(m->bytes) - sizeof(m->out));
	m->out = (struct fuse_out_header){.len = (uint32_t)(sizeof(m->out) + len),
					  .error = -error,
					  .unique = unique};
	if (len)
		memcpy(BODY(m), body, len);
	libfuse_sends_raw(p, m->bytes, m->out.len);
	free(m);
}

struct message *expect_reply(struct peer *p, uint64_t unique, int error, size_t body_len)
{
	struct message *m = kernel_gets(p);

	CHECK(m->len == sizeof(m->out) + body_len);
	CHECK(m->out.len == m->len);
	CHECK(m->out.unique == unique);
	CHECK(m->out.error == -error);
	return m;
}

/* ---- frequent exchanges ------------------------------------------------------------------------ */

void release_node(struct peer *p, uint64_t nodeid, uint32_t flags)
{
	struct fuse_release_in in = {.fh = nodeid, .flags = flags};

	expect_reply(p, ask(p, FUSE_RELEASE, nodeid, &in, sizeof(in)), 0, 0);
}

static struct wire_open_out open_out(struct message *m)
{
	struct wire_open_out out;

	memcpy(&out, BODY(m), sizeof(out));
	return out;
}

struct wire_open_out relayed_open(struct peer *p, uint64_t nodeid, uint32_t flags)
{
	struct fuse_open_in in = {.flags = flags};
	struct wire_open_out said = {.fh = 99, .open_flags = FOPEN_KEEP_CACHE, .backing_id = 0};
	uint64_t unique = ask(p, FUSE_OPEN, nodeid, &in, sizeof(in));
	struct message *m = libfuse_gets(p);

	CHECK(m->in.unique == unique && m->in.opcode == FUSE_OPEN && m->in.nodeid == nodeid);
	libfuse_replies(p, unique, 0, &said, sizeof(said));
	return open_out(expect_reply(p, unique, 0, sizeof(said)));
}

struct wire_open_out repeat_open(struct peer *p, uint64_t nodeid)
{
	struct fuse_open_in in = {.flags = O_RDONLY};
	uint64_t unique = ask(p, FUSE_OPEN, nodeid, &in, sizeof(in));

	return open_out(expect_reply(p, unique, 0, sizeof(struct wire_open_out)));
}

int scratch_file(const char *content)
{
	char name[] = "channel-test-XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(unlink(name) == 0);
	CHECK(pwrite(fd, content, strlen(content), 0) == (ssize_t)strlen(content));
	return fd;
}
