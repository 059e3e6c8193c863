/* Many threads at once, and closing under load: what ThreadSanitizer should look at. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "peer.h"

#define NODES 8
#define ROUNDS 400

static bool readable(int fd, int ms)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};
	int n;

	do
		n = poll(&pfd, 1, ms);
	while (n < 0 && errno == EINTR);
	return n > 0 && (pfd.revents & POLLIN);
}

/* ---- libfuse's side, in a thread: answers every request, attaching a backing to each OPEN -------- */

struct libfuse {
	struct peer *p;
	atomic_bool stop;
	pthread_t thread;
};

static void back(struct channel *ch, uint64_t nodeid, bool writing)
{
	enum node_kind kind = nodeid % 2 ? NODE_SHARED : NODE_PRIVATE;
	bool passthrough = nodeid % 3 == 0;

	if (nodes_open(&ch->nodes, nodeid, writing, 0))
		return;
	CHECK(nodes_attach(&ch->nodes, nodeid, scratch_file("content"), kind, passthrough,
			   writing, 0) == 0);
}

static void *libfuse_main(void *arg)
{
	struct libfuse *l = arg;
	struct channel *ch = l->p->ch;
	struct message *const m = malloc(sizeof(*m));

	while (!atomic_load(&l->stop)) {
		struct wire_open_out open = {0};
		struct fuse_attr_out attr = {0};
		ssize_t n;

		channel_drain(ch);
		if (!readable(ch->daemon_fd, 20))
			continue;
		n = recv(ch->daemon_fd, m->bytes, sizeof(m->bytes), MSG_DONTWAIT);
		if (n <= 0)
			break; /* the channel was closed */
		if (m->in.opcode == FUSE_OPEN) {
			uint32_t flags;
			memcpy(&flags, IN_BODY(m), sizeof(flags));
			back(ch, m->in.nodeid, (flags & O_ACCMODE) != O_RDONLY);
		}
		struct fuse_out_header head = {.unique = m->in.unique};
		struct iovec iov[2] = {{&head, sizeof(head)}, {NULL, 0}};
		if (m->in.opcode == FUSE_OPEN)
			iov[1] = (struct iovec){&open, sizeof(open)};
		else if (m->in.opcode == FUSE_GETATTR)
			iov[1] = (struct iovec){&attr, sizeof(attr)};
		head.len = (uint32_t)(sizeof(head) + iov[1].iov_len);
		struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
		if (sendmsg(ch->daemon_fd, &msg, MSG_NOSIGNAL) < 0)
			break;
	}
	free(m);
	return NULL;
}

static void libfuse_start(struct libfuse *l, struct peer *p)
{
	l->p = p;
	atomic_store(&l->stop, false);
	CHECK(pthread_create(&l->thread, NULL, libfuse_main, l) == 0);
}

static void libfuse_stop(struct libfuse *l)
{
	atomic_store(&l->stop, true);
	pthread_join(l->thread, NULL);
}

/* ---- the kernel's side: opens, reads and releases without waiting for one reply at a time --------- */

static void every_request_is_answered_once_under_load(void)
{
	enum { WINDOW = 16, TOTAL = ROUNDS * 4 };
	char body[128] = {0};
	struct fuse_read_in read_in = {.size = 4096};
	struct libfuse l;
	struct peer p;
	uint64_t asked = 0, answered = 0;
	uint64_t first;
	static uint8_t seen[TOTAL];

	memset(seen, 0, sizeof(seen));
	peer_start(&p, true, 3);
	libfuse_start(&l, &p);
	first = p.next_unique;
	while (answered < TOTAL) {
		if (asked < TOTAL && asked - answered < WINDOW) {
			uint64_t node = 2 + asked / 4 % NODES;
			switch (asked++ % 4) {
			case 0:
				ask(&p, FUSE_OPEN, node, body, sizeof(struct fuse_open_in));
				break;
			case 1:
				ask(&p, FUSE_READ, node, &read_in, sizeof(read_in));
				break;
			case 2:
				ask(&p, FUSE_GETATTR, node, body, sizeof(struct fuse_getattr_in));
				break;
			default:
				ask(&p, FUSE_RELEASE, node, body, sizeof(struct fuse_release_in));
				break;
			}
			continue;
		}
		struct message *m = kernel_gets(&p);
		if (m->out.unique == 0) /* a notification, which answers nothing */
			continue;
		uint64_t which = (m->out.unique - first) / 2;
		CHECK(m->len >= 16 && which < TOTAL && !seen[which]);
		seen[which] = 1;
		answered++;
	}
	libfuse_stop(&l);
	CHECK(!pending_any(&p.ch->pending));
	CHECK(p.ch->counters->by_opcode[FUSE_OPEN].count == ROUNDS);
	peer_stop(&p);
}

/* ---- Python's side against the workers ------------------------------------------------------------- */

struct meddler {
	struct peer *p;
	atomic_bool stop;
};

static void *meddle(void *arg)
{
	struct meddler *m = arg;
	struct channel *ch = m->p->ch;
	uint64_t i = 0;

	while (!atomic_load(&m->stop)) {
		uint64_t node = 2 + i++ % NODES;
		struct node_opens s;
		int fd;

		switch (i % 5) {
		case 0:
			nodes_revoke(&ch->nodes, node, &s);
			break;
		case 1:
			fd = scratch_file("switched");
			if (nodes_switch(&ch->nodes, node, fd) != 1)
				close(fd);
			break;
		case 2:
			nodes_forget(&ch->nodes, node);
			break;
		case 3:
			nodes_writers(&ch->nodes, node);
			break;
		default:
			notify_inval_entry(ch, node, "name", 4);
			notify_inval_attr(ch, node);
			break;
		}
		nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
	}
	return NULL;
}

static void revoke_switch_and_forget_may_meet_any_request(void)
{
	char body[128] = {0};
	struct fuse_read_in read_in = {.size = 4096};
	struct libfuse l;
	struct peer p;
	struct meddler m = {.p = &p};
	pthread_t meddlers[2];

	peer_start(&p, true, 3);
	libfuse_start(&l, &p);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&meddlers[i], NULL, meddle, &m) == 0);
	for (int i = 0; i < ROUNDS; i++) {
		uint64_t node = 2 + (uint64_t)i % NODES;
		int wait_for = 3;

		ask(&p, FUSE_OPEN, node, body, sizeof(struct fuse_open_in));
		ask(&p, FUSE_READ, node, &read_in, sizeof(read_in));
		ask(&p, FUSE_RELEASE, node, body, sizeof(struct fuse_release_in));
		while (wait_for)
			if (kernel_gets(&p)->out.unique != 0)
				wait_for--;
	}
	atomic_store(&m.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(meddlers[i], NULL);
	libfuse_stop(&l);
	peer_stop(&p);
}

/* ---- waiting --------------------------------------------------------------------------------------- */

/* A worker is held up in the one place where a test can do that: the socket to libfuse is full. */
static void a_worker_that_waits_holds_up_no_other(void)
{
	struct fuse_read_in in = {.size = 1};
	uint64_t slow[8], unique;
	int tiny = 1; /* the kernel makes it room for about five messages */
	struct peer p;

	peer_start(&p, true, 10);
	CHECK(setsockopt(p.ch->relay_fd, SOL_SOCKET, SO_SNDBUF, &tiny, sizeof(tiny)) == 0);
	for (int i = 0; i < 8; i++)
		slow[i] = ask(&p, FUSE_RMDIR, 7, "slow", 5);
	CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file("x"), NODE_SHARED, READ_CACHED, false, 0) == 0);
	unique = ask(&p, FUSE_READ, 5, &in, sizeof(in));
	expect_reply(&p, unique, 0, 1);
	for (int i = 0; i < 8; i++) {
		unique = libfuse_gets(&p)->in.unique;
		CHECK(unique >= slow[0] && unique <= slow[7]);
		libfuse_replies(&p, unique, 0, NULL, 0);
		expect_reply(&p, unique, 0, 0);
	}
	peer_stop(&p);
}

/* ---- closing --------------------------------------------------------------------------------------- */

static void close_wakes_idle_workers_and_may_be_repeated(void)
{
	struct peer p;

	for (int i = 0; i < 20; i++) {
		peer_start(&p, true, 10);
		channel_close(p.ch);
		CHECK(readable(p.ch->closed_fd, 0));
		CHECK(!channel_enter(p.ch));
		channel_close(p.ch);
		peer_stop(&p);
	}
}

static void close_before_start_and_before_adopt_is_fine(void)
{
	struct channel *ch = channel_new(true, ROOT_INO, 10, &fake_ops, -1);
	struct peer p;

	channel_close(ch);
	channel_free(ch);
	peer_new(&p, true, 10);
	peer_stop(&p);
}

static void close_answers_what_waits_for_libfuse(void)
{
	struct peer p;
	uint64_t first, second;

	peer_start(&p, true, 10);
	first = ask(&p, FUSE_RMDIR, 7, "a", 2);
	libfuse_gets(&p);
	second = ask(&p, FUSE_RMDIR, 7, "b", 2);
	libfuse_gets(&p);
	channel_close(p.ch);
	uint64_t a = expect_reply(&p, kernel_gets(&p)->out.unique == first ? second : first, EIO, 0)
			     ->out.unique;
	CHECK(a == first || a == second);
	peer_stop(&p);
}

static void the_end_of_the_kernel_is_told(void)
{
	struct peer p;

	peer_start(&p, true, 10);
	CHECK(!readable(p.ch->closed_fd, 20));
	peer_hang_up(&p);
	CHECK(readable(p.ch->closed_fd, 10000));
	peer_stop(&p);
}

/* ENODEV is an unmount; what else read(2) may say is none, and told apart from it. */
static void an_error_of_the_device_is_no_unmount(void)
{
	struct peer p;
	int err;

	for (err = ENODEV; err; err = err == ENODEV ? ECONNABORTED : 0) {
		peer_start(&p, true, 10);
		kernel_gone(p.ch, err);
		CHECK(readable(p.ch->closed_fd, 0) && atomic_load(&p.ch->read_error) == 0);
		peer_stop(&p);
	}
	peer_start(&p, true, 10);
	notify_inval_attr(p.ch, 9); /* the peer goes with this unread, which its socket calls a reset */
	peer_hang_up(&p);
	CHECK(readable(p.ch->closed_fd, 10000));
	CHECK(atomic_load(&p.ch->read_error) == ECONNRESET);
	channel_close(p.ch);
	CHECK(atomic_load(&p.ch->read_error) == ECONNRESET);
	peer_stop(&p);
}

struct load {
	struct peer *p;
	atomic_bool stop;
	bool drain;
};

static void *ask_forever(void *arg)
{
	struct load *load = arg;
	struct fuse_in_header head = {.len = sizeof(head) + 2, .opcode = FUSE_RMDIR, .nodeid = 7};
	struct fuse_read_in in = {.size = 4096};
	struct fuse_in_header read_head = {
		.len = sizeof(read_head) + sizeof(in), .opcode = FUSE_READ, .nodeid = 5};
	struct iovec a[2] = {{&head, sizeof(head)}, {"a", 2}};
	struct iovec b[2] = {{&read_head, sizeof(read_head)}, {&in, sizeof(in)}};
	uint64_t unique = 1000;
	uint8_t sink[8192];

	while (!atomic_load(&load->stop)) {
		struct msghdr m = {.msg_iov = unique % 4 ? a : b, .msg_iovlen = 2};

		unique += 2;
		head.unique = read_head.unique = unique;
		sendmsg(load->p->kernel, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
		while (recv(load->p->kernel, sink, sizeof(sink), MSG_DONTWAIT) > 0)
			;
	}
	return NULL;
}

static void *use_forever(void *arg)
{
	struct load *load = arg;
	struct channel *ch = load->p->ch;

	while (!atomic_load(&load->stop)) {
		struct node_opens s;
		if (!channel_enter(ch))
			continue;
		channel_drain(ch);
		nodes_revoke(&ch->nodes, 6, &s);
		notify_inval_attr(ch, 6);
		notify_inval_entry(ch, 6, "name", 4);
		channel_leave(ch);
	}
	return NULL;
}

static void close_under_load_ends(void)
{
	for (int round = 0; round < 30; round++) {
		struct libfuse l;
		struct peer p;
		struct load load = {.p = &p};
		pthread_t threads[3];

		peer_start(&p, true, 10);
		CHECK(nodes_attach(&p.ch->nodes, 5, scratch_file("x"), NODE_SHARED, READ_CACHED,
				   false, 0) == 0);
		libfuse_start(&l, &p);
		CHECK(pthread_create(&threads[0], NULL, ask_forever, &load) == 0);
		CHECK(pthread_create(&threads[1], NULL, use_forever, &load) == 0);
		CHECK(pthread_create(&threads[2], NULL, use_forever, &load) == 0);
		nanosleep(&(struct timespec){.tv_nsec = 1000000L * (2 + 7 * round % 40)}, NULL);
		libfuse_stop(&l); /* from here on requests pile up */
		nanosleep(&(struct timespec){.tv_nsec = 1000000L * 3}, NULL);
		channel_close(p.ch);
		atomic_store(&load.stop, true);
		for (int i = 0; i < 3; i++)
			pthread_join(threads[i], NULL);
		peer_stop(&p);
	}
}

int main(void)
{
	RUN(every_request_is_answered_once_under_load);
	RUN(revoke_switch_and_forget_may_meet_any_request);
	RUN(a_worker_that_waits_holds_up_no_other);
	RUN(close_wakes_idle_workers_and_may_be_repeated);
	RUN(close_before_start_and_before_adopt_is_fine);
	RUN(close_answers_what_waits_for_libfuse);
	RUN(the_end_of_the_kernel_is_told);
	RUN(an_error_of_the_device_is_no_unmount);
	RUN(close_under_load_ends);
	return 0;
}
