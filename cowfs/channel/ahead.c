#include "ahead.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

/* How far in front of the reader, in bytes. More than two of the kernel's own windows (twice the
 * read-ahead limit of the device). */
#define DISTANCE (16u * 1024u * 1024u)

/* What is brought in at a time, in bytes; between two of them it is seen how far the reader is. */
#define STEP (1024u * 1024u)

/* One page in this many bytes says whether all of them are in memory. The kernel never reads less than
 * that ahead of a reader in sequence, so this finds what such a reader has left in memory. */
#define SAMPLE (128u * 1024u)

/* Reads that are no further apart than this, in bytes, count as being in sequence: the kernel reads ahead
 * into FUSE's pages in several requests, which several workers take in any order. */
#define NEAR (2u * 1024u * 1024u)

/* At most this many workers read ahead, so that there are always others for requests. */
#define MAX_AHEAD 4

void ahead_init(struct ahead *a)
{
	a->null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
}

void ahead_destroy(struct ahead *a)
{
	if (a->null_fd >= 0)
		close(a->null_fd);
	a->null_fd = -1;
}

bool ahead_follows(struct stream *s, uint64_t offset, size_t size)
{
	uint64_t end = offset + size, next = atomic_load(&s->next), then;
	bool near;

	do {
		near = offset <= next + NEAR && end + NEAR >= next;
		then = near && next > end ? next : end;
	} while (!atomic_compare_exchange_weak(&s->next, &next, then));
	return near && offset > 0;
}

/*
 * A mapping that nobody touches costs nothing, and mincore(2) looks at the file's pages. cachestat(2)
 * would count all of them, and is only there since Linux 6.5; a read with RWF_NOWAIT starts read-ahead
 * of a page where it finds nothing (6.18).
 */
bool ahead_is_in_memory(int fd, uint64_t offset, uint64_t size)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t start = offset - offset % page;
	uint8_t *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)start);
	bool all = map != MAP_FAILED;

	for (uint64_t at = 0; all && at < size; at += SAMPLE) {
		unsigned char there;

		all = mincore(map + at, page, &there) == 0 && there & 1;
	}
	if (map != MAP_FAILED)
		munmap(map, size);
	return all;
}

/* false: far enough, or at the end of the file. */
static bool step(struct ahead *a, struct stream *s, int fd)
{
	uint64_t next = atomic_load(&s->next);
	ssize_t n;
	off_t at;

	if (s->done < next || s->done > next + 2 * DISTANCE) /* overtaken, or gone elsewhere */
		s->done = next;
	if (s->done >= next + DISTANCE)
		return false;
	if (ahead_is_in_memory(fd, s->done, DISTANCE)) {
		s->done += DISTANCE;
		return false;
	}
	at = (off_t)s->done;
	n = sendfile(a->null_fd, fd, &at, STEP);
	if (n <= 0)
		return false;
	s->done += (uint64_t)n;
	return true;
}

void ahead_read(struct ahead *a, struct stream *s, int fd)
{
	if (a->null_fd < 0 || atomic_exchange(&s->busy, true))
		return;
	if (atomic_fetch_add(&a->workers, 1) < MAX_AHEAD)
		while (step(a, s, fd))
			;
	atomic_fetch_sub(&a->workers, 1);
	atomic_store(&s->busy, false);
}
