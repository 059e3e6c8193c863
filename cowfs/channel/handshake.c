/*
 * handshake.c - mount(2), and INIT with both sides
 *
 * Knows what libfuse may know; what the kernel is asked for agreement.c says. Each side gets an INIT
 * of its own: the kernel is answered by the channel, because libfuse 3.14 has never heard of
 * passthrough; libfuse is sent an INIT that says protocol 7.13 and has the 16-byte body, because
 * from 7.14 on it would splice from its descriptor, which a SEQPACKET socket refuses. Request
 * layouts are the same in both.
 *
 * No thread runs while this does; no lock is needed.
 */
#include "handshake.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kept_times.h"
#include "kernel.h"
#include "node_restore.h"
#include "workers.h"

/* mount(2) queues INIT before it returns; longer than this it can only be missing. */
#define INIT_TIMEOUT_MS 10000

#define READ_AHEAD_KB "1024"

/* What libfuse is told that the kernel offers: what it needs for pyfuse3, and nothing that would
 * make it change a layout, a buffer size or a file descriptor. */
static const uint32_t told =
	FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC | FUSE_DONT_MASK |
	FUSE_DO_READDIRPLUS | FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL;

/* ---- mount ------------------------------------------------------------------------------------- */

void channel_adopt(struct channel *ch, int dev_fd)
{
	ch->dev_fd = dev_fd;
	ch->nodes.device.dev_fd = dev_fd;
}

int channel_mount(struct channel *ch, const char *source, const char *mountpoint,
		  unsigned long flags, const char *options)
{
	char *data = NULL;
	char *where = NULL;
	char target[32];
	int err = 0;
	int fd, place;

	if (ch->dev_fd >= 0)
		return -EBUSY;
	/* mount(2) would follow a symlink that was put in the place of the directory. */
	place = open(mountpoint, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (place < 0)
		return -errno;
	snprintf(target, sizeof(target), "/proc/self/fd/%d", place);
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		err = -errno;
		close(place);
		return err;
	}
	where = strdup(mountpoint);
	if (!where ||
	    asprintf(&data, "fd=%d,rootmode=40000,user_id=0,group_id=0%s%s", fd,
		     *options ? "," : "", options) < 0) {
		data = NULL;
		err = -ENOMEM;
	} else if (mount(source, target, "fuse.cowfs", flags, data) < 0) {
		err = -errno;
	}
	free(data);
	close(place);
	if (err) {
		free(where);
		close(fd);
		return err;
	}
	ch->mountpoint = where;
	channel_adopt(ch, fd);
	return 0;
}

/*
 * Readahead beyond 128 KiB can only be set from outside (the max_readahead of INIT only lowers
 * it). The device number comes from statx() without synchronisation and without any field asked
 * for, which the kernel answers from the root inode it has: no request, hence no deadlock.
 * A failure costs speed and nothing else.
 */
static void raise_readahead(const char *mountpoint)
{
	char path[64];
	struct statx stx;
	int fd;

	if (statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &stx) < 0)
		return;
	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", stx.stx_dev_major,
		 stx.stx_dev_minor);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, READ_AHEAD_KB, strlen(READ_AHEAD_KB)) < 0) {
		/* sysfs is read-only in some containers */
	}
	close(fd);
}

/* ---- INIT ------------------------------------------------------------------------------------ */

struct init_request {
	struct fuse_in_header head;
	struct wire_init_in_ext in;
};

/* Read the kernel's INIT. 0 or -errno. */
static int read_init(struct channel *ch, struct init_request *init)
{
	union {
		struct init_request init;
		uint8_t bytes[FUSE_MIN_READ_BUFFER]; /* the kernel refuses a smaller buffer */
	} m;
	struct pollfd pfd = {.fd = ch->dev_fd, .events = POLLIN};
	ssize_t n;
	int ready;

	do
		ready = poll(&pfd, 1, INIT_TIMEOUT_MS);
	while (ready < 0 && errno == EINTR);
	if (ready <= 0)
		return ready < 0 ? -errno : -ETIMEDOUT;
	memset(&m.init, 0, sizeof(m.init));
	do
		n = read(ch->dev_fd, &m, sizeof(m));
	while (n < 0 && (errno == EINTR || errno == EAGAIN));
	if (n < 0)
		return -errno;
	if ((size_t)n < sizeof(m.init.head) + sizeof(m.init.in.base) ||
	    m.init.head.len != (size_t)n || m.init.head.opcode != FUSE_INIT)
		return -EPROTO;
	if ((size_t)n < sizeof(m.init))
		memset(m.bytes + n, 0, sizeof(m.init) - (size_t)n);
	*init = m.init;
	return 0;
}

static size_t larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

static void note_agreement(struct channel *ch, const struct wire_init_in_ext *in,
			   const struct wire_init_out *out)
{
	uint64_t agreed = agreement_flags(out);

	ch->passthrough = agreed & FUSE_PASSTHROUGH;
	ch->resends = agreement_offered(in) & FUSE_HAS_RESEND;
	ch->max_read = larger(WIRE_MAX_DATA, (size_t)agreement_max_read(out));
	ch->max_write = larger(WIRE_MAX_DATA, out->max_write);
	ch->setxattr_head = agreed & FUSE_SETXATTR_EXT ? sizeof(struct fuse_setxattr_in)
						       : FUSE_COMPAT_SETXATTR_IN_SIZE;
}

/* Put an INIT of libfuse's taste into the socket; channel_drain() drops the reply. 0 or -errno. */
static int replay_init(struct channel *ch, const struct ledger_init *init)
{
	struct {
		struct fuse_in_header head;
		struct wire_init_in in;
	} m = {
		.head = init->head,
		.in = {.major = FUSE_KERNEL_VERSION,
		       .minor = 13,
		       .max_readahead = init->out.max_readahead,
		       .flags = told},
	};
	struct pending p = {
		.unique = init->head.unique, .opcode = FUSE_INIT, .start_ns = now_ns()};
	int err;

	m.head.len = sizeof(m);
	m.head.total_extlen = 0;
	err = pending_add(&ch->pending, &p);
	if (err)
		return err;
	return send(ch->relay_fd, &m, sizeof(m), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int start_threads(struct channel *ch)
{
	int err = notifier_start(ch);

	return err ? err : workers_start(ch);
}

int channel_start(struct channel *ch)
{
	struct ledger_init init = {0};
	struct init_request request;
	int err;

	if (ch->dev_fd < 0)
		return -ENOTCONN;
	err = read_init(ch, &request);
	if (err)
		return err;
	counters_came(ch->counters, FUSE_INIT);
	counters_answer(ch->counters, FUSE_INIT, false, true);
	/* 7.23 (Linux 3.15) is where today's layout of INIT begins. */
	if (request.in.base.major != FUSE_KERNEL_VERSION || request.in.base.minor < 23) {
		kernel_answer(ch, request.head.unique, EPROTO, NULL, 0);
		return -EPROTO;
	}
	init.head = request.head;
	init.in = request.in;
	init.out = agreement_make(&request.in, ch->want_passthrough);
	note_agreement(ch, &init.in, &init.out);
	ledger_set_init(ch->ledger, &init);
	err = kernel_answer(ch, init.head.unique, 0, &init.out, sizeof(init.out));
	if (!err)
		err = replay_init(ch, &init);
	if (err)
		return err;
	if (ch->mountpoint)
		raise_readahead(ch->mountpoint);
	return start_threads(ch);
}

int channel_resume(struct channel *ch, int dev_fd, int volume_fd)
{
	const struct ledger_init *init = ledger_init(ch->ledger);
	char why[AGREEMENT_WHY];
	int lost, err;

	if (ch->dev_fd >= 0 || !init) {
		close(dev_fd);
		return init ? -EBUSY : -ENOTCONN;
	}
	channel_adopt(ch, dev_fd);
	if (!agreement_can_be_served(init, ch->want_passthrough, why))
		return -EPROTO;
	note_agreement(ch, &init->in, &init->out);
	err = replay_init(ch, init);
	if (err)
		return err;
	kept_times_restore(ch->ledger, volume_fd);
	lost = nodes_restore(&ch->nodes, volume_fd);
	if (lost < 0)
		return lost;
	err = notify_resend(ch);
	/* ENODEV: unmounted meanwhile, as the workers are about to find out */
	if (err && err != -ENODEV && err != -ENOTCONN)
		return err;
	err = start_threads(ch);
	return err ? err : lost;
}
