/* Reading ahead: what is in memory is passed over, and the rest is brought in up to some distance. */
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "ahead.h"
#include "peer.h"

#define MIB (1024 * 1024)

/* In the place of the C library's: it says how much it brought in, and brings in nothing. */
static int64_t brought_in;
static int64_t file_size;

ssize_t sendfile(int out, int in, off_t *offset, size_t count)
{
	int64_t left = file_size - *offset;
	int64_t n = (int64_t)count < left ? (int64_t)count : left;

	(void)out;
	(void)in;
	brought_in += n;
	*offset += n;
	return (ssize_t)n;
}

/* A file of `size` bytes, nothing of which is in memory: it is a hole. */
static int hole(int64_t size)
{
	int fd = scratch_file("");

	CHECK(ftruncate(fd, size) == 0);
	file_size = size;
	brought_in = 0;
	return fd;
}

static void bring_in(int fd, int64_t start, int64_t end)
{
	static const char mib[MIB] = {1};

	for (; start < end; start += MIB)
		CHECK(pwrite(fd, mib, MIB, start) == MIB);
}

static void what_is_in_memory_is_known(void)
{
	int fd = hole(16 * MIB);

	CHECK(!ahead_is_in_memory(fd, 0, 4 * MIB));
	bring_in(fd, 0, 4 * MIB);
	CHECK(ahead_is_in_memory(fd, 0, 4 * MIB));
	CHECK(ahead_is_in_memory(fd, 12345, 3 * MIB)); /* no offset of a page */
	CHECK(!ahead_is_in_memory(fd, 0, 5 * MIB));
	bring_in(fd, 5 * MIB, 16 * MIB);
	CHECK(!ahead_is_in_memory(fd, 0, 16 * MIB)); /* all but one MiB */
	bring_in(fd, 4 * MIB, 5 * MIB);
	CHECK(ahead_is_in_memory(fd, 0, 16 * MIB));
	CHECK(!ahead_is_in_memory(fd, 12 * MIB, 8 * MIB)); /* it ends before that */
	close(fd);
}

static void what_cannot_be_mapped_is_not_in_memory(void)
{
	int ends[2];

	CHECK(pipe(ends) == 0);
	CHECK(!ahead_is_in_memory(ends[0], 0, MIB));
	close(ends[0]);
	close(ends[1]);
}

static void what_is_not_in_memory_is_brought_in_up_to_a_distance(void)
{
	int fd = hole(64 * MIB);
	struct stream s = {0};
	struct ahead a = {0};

	ahead_init(&a);
	CHECK(!ahead_follows(&s, 0, MIB));
	CHECK(ahead_follows(&s, MIB, MIB));
	ahead_read(&a, &s, fd);
	CHECK(brought_in == 16 * MIB);
	ahead_read(&a, &s, fd);
	CHECK(brought_in == 16 * MIB); /* the reader has not come nearer */
	CHECK(ahead_follows(&s, 2 * MIB, MIB));
	ahead_read(&a, &s, fd);
	CHECK(brought_in == 17 * MIB);
	ahead_destroy(&a);
	close(fd);
}

static void what_is_in_memory_is_not_read_ahead(void)
{
	int fd = hole(64 * MIB);
	struct stream s = {0};
	struct ahead a = {0};

	ahead_init(&a);
	bring_in(fd, 0, 64 * MIB);
	for (int at = 0; at < 60; at++)
		if (ahead_follows(&s, (uint64_t)at * MIB, MIB))
			ahead_read(&a, &s, fd);
	CHECK(brought_in <= 16 * MIB); /* the end, where a whole stretch does not fit any more */
	ahead_destroy(&a);
	close(fd);
}

static void reads_that_come_in_another_order_follow_too(void)
{
	struct stream s = {0};

	ahead_follows(&s, 0, MIB);
	CHECK(ahead_follows(&s, 2 * MIB, MIB));
	CHECK(ahead_follows(&s, MIB, MIB));
	CHECK(ahead_follows(&s, 4 * MIB, MIB));
	CHECK(ahead_follows(&s, 3 * MIB, MIB));
	CHECK(atomic_load(&s.next) == 5 * MIB); /* the furthest of them */
	CHECK(!ahead_follows(&s, 40 * MIB, MIB));
	CHECK(!ahead_follows(&s, 20 * MIB, MIB));
	CHECK(ahead_follows(&s, 21 * MIB, MIB));
}

int main(void)
{
	RUN(what_is_in_memory_is_known);
	RUN(what_cannot_be_mapped_is_not_in_memory);
	RUN(reads_that_come_in_another_order_follow_too);
	RUN(what_is_not_in_memory_is_brought_in_up_to_a_distance);
	RUN(what_is_in_memory_is_not_read_ahead);
	return 0;
}
