/* Requests on open files, answered from real files in the working directory. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "peer.h"

#ifndef FALLOC_FL_KEEP_SIZE
#include <linux/falloc.h>
#endif

/* A channel with one node, 5, backed by a copy of fd (which stays the test's). */
static void start_with(struct peer *p, int fd, enum node_kind kind, bool passthrough)
{
	peer_start(p, true, 10);
	CHECK(nodes_attach(&p->ch->nodes, 5, dup(fd), kind, passthrough, true, 0) == 0);
}

static struct message *read_node(struct peer *p, uint64_t offset, uint32_t size, int error,
				 size_t got)
{
	struct fuse_read_in in = {.fh = 5, .offset = offset, .size = size};

	return expect_reply(p, ask(p, FUSE_READ, 5, &in, sizeof(in)), error, got);
}

static uint32_t write_node(struct peer *p, uint64_t offset, const void *data, uint32_t size,
			   uint32_t write_flags, int error)
{
	uint8_t *body = calloc(1, sizeof(struct fuse_write_in) + size);
	struct fuse_write_in in = {
		.fh = 5, .offset = offset, .size = size, .write_flags = write_flags};
	struct fuse_write_out out = {0};
	struct message *m;
	uint64_t unique;

	memcpy(body, &in, sizeof(in));
	memcpy(body + sizeof(in), data, size);
	unique = ask(p, FUSE_WRITE, 5, body, sizeof(in) + size);
	m = expect_reply(p, unique, error, error ? 0 : sizeof(out));
	if (!error)
		memcpy(&out, BODY(m), sizeof(out));
	free(body);
	return out.size;
}

static void a_read_returns_what_the_file_holds(void)
{
	int fd = scratch_file("0123456789");
	struct peer p;

	start_with(&p, fd, NODE_SHARED, false);
	CHECK(memcmp(BODY(read_node(&p, 0, 10, 0, 10)), "0123456789", 10) == 0);
	CHECK(memcmp(BODY(read_node(&p, 7, 4096, 0, 3)), "789", 3) == 0);
	read_node(&p, 10, 4096, 0, 0);
	read_node(&p, 1 << 30, 4096, 0, 0);
	read_node(&p, 0, 0, 0, 0);
	peer_stop(&p);
	close(fd);
}

static void a_megabyte_is_written_and_read_in_one_request(void)
{
	uint32_t size = WIRE_MAX_DATA;
	uint8_t *data = malloc(size), *back = malloc(size);
	int fd = scratch_file("");
	struct peer p;

	for (uint32_t i = 0; i < size; i++)
		data[i] = (uint8_t)(i * 31 + i / 4096);
	start_with(&p, fd, NODE_PRIVATE, false);
	CHECK(write_node(&p, 12345, data, size, 0, 0) == size);
	CHECK(pread(fd, back, size, 12345) == (ssize_t)size && memcmp(data, back, size) == 0);
	CHECK(memcmp(BODY(read_node(&p, 12345, size, 0, size)), data, size) == 0);
	/* more than was agreed on is cut, not overrun */
	CHECK(memcmp(BODY(read_node(&p, 12345, UINT32_MAX, 0, size)), data, size) == 0);
	peer_stop(&p);
	close(fd);
	free(data);
	free(back);
}

static void a_read_of_a_passed_through_file_only_starts_readahead(void)
{
	int fd = scratch_file("0123456789");
	struct fuse_notify_inval_inode_out out;
	struct message *m;
	struct peer p;

	start_with(&p, fd, NODE_SHARED, true);
	read_node(&p, 8192, 4096, EIO, 0);
	/* and the empty pages that the kernel has made for it are taken away */
	m = kernel_gets(&p);
	CHECK(m->out.unique == 0 && m->out.error == FUSE_NOTIFY_INVAL_INODE);
	memcpy(&out, BODY(m), sizeof(out));
	CHECK(out.ino == 5 && out.off == 8192 && out.len == 4096);
	peer_stop(&p);
	close(fd);
}

static void a_shared_file_is_never_written(void)
{
	int fd = scratch_file("template");
	struct fuse_fallocate_in fa = {.length = 4096};
	char back[9] = {0};
	struct peer p;

	start_with(&p, fd, NODE_SHARED, false); /* with a descriptor that would allow it */
	write_node(&p, 0, "x", 1, 0, EPERM);
	expect_reply(&p, ask(&p, FUSE_FALLOCATE, 5, &fa, sizeof(fa)), EPERM, 0);
	CHECK(pread(fd, back, 8, 0) == 8 && !strcmp(back, "template"));
	peer_stop(&p);
	close(fd);
}

static void requests_on_a_node_without_backing_fail(void)
{
	static const uint32_t opcodes[] = {FUSE_READ,	   FUSE_FSYNC, FUSE_LSEEK,
					   FUSE_FALLOCATE, FUSE_COPY_FILE_RANGE};
	char body[128] = {0};
	struct peer p;

	peer_start(&p, true, 10);
	for (size_t i = 0; i < sizeof(opcodes) / sizeof(*opcodes); i++)
		expect_reply(&p, ask(&p, opcodes[i], 5, body, sizeof(body)), EIO, 0);
	expect_reply(&p, ask(&p, FUSE_FLUSH, 5, body, sizeof(body)), 0, 0);
	expect_reply(&p, ask(&p, FUSE_RELEASE, 5, body, sizeof(body)), 0, 0);
	peer_stop(&p);
}

/* The mode of a file of mode before, after a one-byte write by somebody without CAP_FSETID; the
 * kernel is told that the mode it knows is not to be believed. */
static mode_t mode_after_write(struct peer *p, int fd, mode_t before)
{
	struct {
		struct fuse_write_in in;
		char data;
	} __attribute__((packed)) body = {
		.in = {.fh = 5, .size = 1, .write_flags = FUSE_WRITE_KILL_SUIDGID}, .data = 'x'};
	struct fuse_notify_inval_inode_out out;
	struct message *m;
	struct stat st;
	uint64_t unique;

	CHECK(fchmod(fd, before) == 0);
	unique = ask(p, FUSE_WRITE, 5, &body, sizeof(body));
	m = kernel_gets(p);
	CHECK(m->out.unique == 0 && m->out.error == FUSE_NOTIFY_INVAL_INODE);
	memcpy(&out, BODY(m), sizeof(out));
	CHECK(out.ino == 5 && out.off < 0);
	expect_reply(p, unique, 0, sizeof(struct fuse_write_out));
	CHECK(fstat(fd, &st) == 0);
	return st.st_mode & 07777;
}

static void a_write_takes_setuid_and_setgid_away_when_asked(void)
{
	int fd = scratch_file("#!");
	struct stat st;
	struct peer p;

	start_with(&p, fd, NODE_PRIVATE, false);
	CHECK(fchmod(fd, 06755) == 0);
	write_node(&p, 0, "x", 1, 0, 0);
	CHECK(fstat(fd, &st) == 0);
	if (geteuid() == 0) /* anybody else's write clears them in the kernel */
		CHECK((st.st_mode & 07777) == 06755);
	CHECK(mode_after_write(&p, fd, 06755) == 0755);
	/* setgid without group execution only goes when the caller is not in the group: ask() says
	 * gid 0 */
	CHECK(mode_after_write(&p, fd, 06745) == (st.st_gid == 0 ? 02745 : 0745));
	peer_stop(&p);
	close(fd);
}

static void the_errno_of_the_file_reaches_the_caller(void)
{
	int fd = open("/dev/full", O_RDWR | O_CLOEXEC);
	struct peer p;

	CHECK(fd >= 0);
	start_with(&p, fd, NODE_PRIVATE, false);
	write_node(&p, 0, "x", 1, 0, ENOSPC);
	peer_stop(&p);
	close(fd);

	fd = open("/", O_RDONLY | O_CLOEXEC);
	start_with(&p, fd, NODE_PRIVATE, false);
	read_node(&p, 0, 10, EISDIR, 0);
	peer_stop(&p);
	close(fd);

	fd = scratch_file("");
	start_with(&p, fd, NODE_PRIVATE, false);
	write_node(&p, (uint64_t)1 << 63, "x", 1, 0, EINVAL); /* a negative offset */
	peer_stop(&p);
	close(fd);
}

static void fsync_is_done_for_private_files(void)
{
	struct fuse_fsync_in in = {.fh = 5};
	int fd = scratch_file("x");
	int pipes[2];
	struct peer p;

	start_with(&p, fd, NODE_PRIVATE, false);
	expect_reply(&p, ask(&p, FUSE_FSYNC, 5, &in, sizeof(in)), 0, 0);
	in.fsync_flags = FUSE_FSYNC_FDATASYNC;
	expect_reply(&p, ask(&p, FUSE_FSYNC, 5, &in, sizeof(in)), 0, 0);
	peer_stop(&p);
	close(fd);

	CHECK(pipe(pipes) == 0); /* a pipe cannot be synced: shows whether it was tried */
	start_with(&p, pipes[0], NODE_PRIVATE, false);
	expect_reply(&p, ask(&p, FUSE_FSYNC, 5, &in, sizeof(in)), EINVAL, 0);
	peer_stop(&p);
	close(pipes[0]);
	close(pipes[1]);
}

static uint64_t seek_node(struct peer *p, uint64_t offset, uint32_t whence, int error)
{
	struct fuse_lseek_in in = {.fh = 5, .offset = offset, .whence = whence};
	uint64_t unique = ask(p, FUSE_LSEEK, 5, &in, sizeof(in));
	struct message *m = expect_reply(p, unique, error, error ? 0 : 8);
	uint64_t at = 0;

	if (!error)
		memcpy(&at, BODY(m), 8);
	return at;
}

static void lseek_finds_data_and_holes(void)
{
	int fd = scratch_file("");
	off_t data, hole;
	struct peer p;

	CHECK(ftruncate(fd, 8 << 20) == 0);
	CHECK(pwrite(fd, "x", 1, 4 << 20) == 1);
	data = lseek(fd, 0, SEEK_DATA);
	hole = lseek(fd, 4 << 20, SEEK_HOLE);
	start_with(&p, fd, NODE_SHARED, true);
	CHECK(seek_node(&p, 0, SEEK_DATA, 0) == (uint64_t)data);
	CHECK(seek_node(&p, 4 << 20, SEEK_HOLE, 0) == (uint64_t)hole);
	seek_node(&p, 16 << 20, SEEK_DATA, ENXIO);
	seek_node(&p, 0, SEEK_SET, EINVAL);
	seek_node(&p, 0, 77, EINVAL);
	peer_stop(&p);
	close(fd);
}

static void lseek_of_a_file_being_written_has_its_pages_written_first(void)
{
	int fd = scratch_file("");
	struct fuse_lseek_in in = {.fh = 5, .offset = 0, .whence = SEEK_DATA};
	struct fuse_notify_inval_inode_out out;
	struct message *m;
	struct peer p;
	uint64_t unique;

	CHECK(ftruncate(fd, 8 << 20) == 0);
	CHECK(pwrite(fd, "x", 1, 4 << 20) == 1);
	start_with(&p, fd, NODE_PRIVATE, false);
	unique = ask(&p, FUSE_LSEEK, 5, &in, sizeof(in));
	m = kernel_gets(&p);
	CHECK(m->out.unique == 0 && m->out.error == FUSE_NOTIFY_INVAL_INODE);
	memcpy(&out, BODY(m), sizeof(out));
	CHECK(out.ino == 5 && out.off == 0 && out.len == 0);
	expect_reply(&p, unique, 0, 8);

	/* while another one waits for that, there are no holes */
	pthread_mutex_lock(&p.ch->flushing);
	CHECK(seek_node(&p, 5, SEEK_DATA, 0) == 5);
	CHECK(seek_node(&p, 5, SEEK_HOLE, 0) == 8 << 20);
	seek_node(&p, 8 << 20, SEEK_DATA, ENXIO);
	pthread_mutex_unlock(&p.ch->flushing);
	peer_stop(&p);
	close(fd);
}

static void fallocate_passes_every_mode(void)
{
	struct fuse_fallocate_in in = {.fh = 5, .offset = 0, .length = 1 << 20};
	int fd = scratch_file("data");
	struct stat st;
	struct peer p;

	start_with(&p, fd, NODE_PRIVATE, true);
	expect_reply(&p, ask(&p, FUSE_FALLOCATE, 5, &in, sizeof(in)), 0, 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 1 << 20);
	in.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	expect_reply(&p, ask(&p, FUSE_FALLOCATE, 5, &in, sizeof(in)), 0, 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 1 << 20 && st.st_blocks == 0);
	in.mode = FALLOC_FL_PUNCH_HOLE; /* impossible without KEEP_SIZE */
	errno = 0;
	CHECK(fallocate(fd, (int)in.mode, 0, 4096) < 0);
	expect_reply(&p, ask(&p, FUSE_FALLOCATE, 5, &in, sizeof(in)), errno, 0);
	peer_stop(&p);
	close(fd);
}

/* The attributes of node 5, or nothing of it but the answer. */
static void expect_attributes_asked_for(struct peer *p, bool asked, uint64_t unique, size_t body)
{
	struct fuse_notify_inval_inode_out out;
	struct message *m;

	if (asked) {
		m = kernel_gets(p);
		CHECK(m->out.unique == 0 && m->out.error == FUSE_NOTIFY_INVAL_INODE);
		memcpy(&out, BODY(m), sizeof(out));
		CHECK(out.ino == 5 && out.off == -1);
	}
	expect_reply(p, unique, 0, body);
}

static uint64_t ask_to_write(struct peer *p, uint32_t write_flags, uint32_t open_flags)
{
	struct {
		struct fuse_write_in in;
		char data[8];
	} w = {.in = {.fh = 5, .size = 8, .write_flags = write_flags, .flags = open_flags}};

	return ask(p, FUSE_WRITE, 5, &w, sizeof(w));
}

static void attributes_are_asked_for_after_what_the_kernel_does_not_wait_for(void)
{
	struct fuse_fallocate_in grow = {.fh = 5, .length = 8192};
	struct fuse_fallocate_in keep = {.fh = 5, .length = 8192, .mode = FALLOC_FL_KEEP_SIZE};
	struct fuse_release_in release = {.fh = 5, .flags = O_RDWR};
	size_t size = sizeof(struct fuse_write_out);
	int fd = scratch_file("data");
	struct peer p;

	start_with(&p, fd, NODE_PRIVATE, false);
	CHECK(nodes_open(&p.ch->nodes, 5, true, 0));
	relayed_open(&p, 5, O_RDWR);
	relayed_open(&p, 5, O_RDWR);
	expect_attributes_asked_for(&p, false, ask_to_write(&p, 0, O_RDWR), size);
	expect_attributes_asked_for(&p, true, ask_to_write(&p, FUSE_WRITE_CACHE, O_RDWR), size);
	expect_attributes_asked_for(&p, true, ask_to_write(&p, 0, O_RDWR | O_DIRECT), size);
	expect_attributes_asked_for(&p, false, ask(&p, FUSE_FALLOCATE, 5, &grow, sizeof(grow)), 0);
	expect_attributes_asked_for(&p, true, ask(&p, FUSE_FALLOCATE, 5, &keep, sizeof(keep)), 0);
	expect_attributes_asked_for(&p, false, ask(&p, FUSE_RELEASE, 5, &release, sizeof(release)), 0);
	expect_attributes_asked_for(&p, true, ask(&p, FUSE_RELEASE, 5, &release, sizeof(release)), 0);
	peer_stop(&p);
	close(fd);
}

static void copy_file_range_answers_both_opcodes(void)
{
	struct fuse_copy_file_range_in in = {
		.fh_in = 5, .off_in = 2, .nodeid_out = 6, .fh_out = 6, .off_out = 10, .len = 5};
	int from = scratch_file("0123456789"), to = scratch_file("");
	char back[16] = {0};
	struct peer p;
	struct fuse_write_out out32;
	struct fuse_copy_file_range_out out64;
	struct message *m;

	start_with(&p, from, NODE_SHARED, true);
	CHECK(nodes_attach(&p.ch->nodes, 6, dup(to), NODE_PRIVATE, READ_PASSTHROUGH, true, 0) == 0);
	m = expect_reply(&p, ask(&p, FUSE_COPY_FILE_RANGE, 5, &in, sizeof(in)), 0, sizeof(out32));
	memcpy(&out32, BODY(m), sizeof(out32));
	CHECK(out32.size == 5);
	CHECK(pread(to, back, 15, 0) == 15 && memcmp(back + 10, "23456", 5) == 0);

	in.off_in = 8; /* a short copy at the end of the file */
	in.off_out = 0;
	in.len = UINT64_MAX;
	m = expect_reply(&p, ask(&p, FUSE_COPY_FILE_RANGE_64, 5, &in, sizeof(in)), 0,
			 sizeof(out64));
	memcpy(&out64, BODY(m), sizeof(out64));
	CHECK(out64.bytes_copied == 2);
	CHECK(pread(to, back, 2, 0) == 2 && memcmp(back, "89", 2) == 0);

	in.nodeid_out = 5; /* into the template's file */
	expect_reply(&p, ask(&p, FUSE_COPY_FILE_RANGE, 5, &in, sizeof(in)), EPERM, 0);
	in.nodeid_out = 77; /* into nothing */
	expect_reply(&p, ask(&p, FUSE_COPY_FILE_RANGE_64, 5, &in, sizeof(in)), EIO, 0);
	peer_stop(&p);
	close(from);
	close(to);
}

static void reads_follow_a_switch_to_the_private_file(void)
{
	int shared = scratch_file("old"), private = scratch_file("new");
	struct peer p;

	start_with(&p, shared, NODE_SHARED, false);
	CHECK(memcmp(BODY(read_node(&p, 0, 3, 0, 3)), "old", 3) == 0);
	CHECK(nodes_switch(&p.ch->nodes, 5, dup(private)) == 1);
	CHECK(memcmp(BODY(read_node(&p, 0, 3, 0, 3)), "new", 3) == 0);
	CHECK(write_node(&p, 0, "N", 1, 0, 0) == 1);
	CHECK(memcmp(BODY(read_node(&p, 0, 3, 0, 3)), "New", 3) == 0);
	peer_stop(&p);
	close(shared);
	close(private);
}

int main(void)
{
	RUN(a_read_returns_what_the_file_holds);
	RUN(a_megabyte_is_written_and_read_in_one_request);
	RUN(a_read_of_a_passed_through_file_only_starts_readahead);
	RUN(a_shared_file_is_never_written);
	RUN(requests_on_a_node_without_backing_fail);
	RUN(a_write_takes_setuid_and_setgid_away_when_asked);
	RUN(the_errno_of_the_file_reaches_the_caller);
	RUN(fsync_is_done_for_private_files);
	RUN(lseek_finds_data_and_holes);
	RUN(lseek_of_a_file_being_written_has_its_pages_written_first);
	RUN(fallocate_passes_every_mode);
	RUN(attributes_are_asked_for_after_what_the_kernel_does_not_wait_for);
	RUN(copy_file_range_answers_both_opcodes);
	RUN(reads_follow_a_switch_to_the_private_file);
	return 0;
}
