#include "ahead.h"

#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

/* How far in front of the reader, in bytes. More than two of the kernel's own windows (twice the
 * read-ahead limit of the device): what it has asked the disk for counts as being in memory. */
#define DISTANCE (16u * 1024u * 1024u)

/* What is brought in at a time, in bytes; between two of them it is seen how far the reader is. */
#define STEP (1024u * 1024u)

/* So many workers at most, so that there are always others for requests. */
#define MAX_AHEAD 4

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* the same on every architecture */
#endif

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
	return atomic_exchange(&s->next, offset + size) == offset && offset > 0;
}

/* Linux 6.5; before, nothing is known to be in memory. */
static bool is_in_memory(int fd, uint64_t offset, uint64_t size)
{
	struct {
		uint64_t offset, size;
	} range = {offset, size};
	struct {
		uint64_t cached, dirty, writeback, evicted, recently_evicted;
	} pages;

	return syscall(SYS_cachestat, fd, &range, &pages, 0) == 0 &&
	       pages.cached >= size / (uint64_t)sysconf(_SC_PAGESIZE);
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
	if (is_in_memory(fd, s->done, DISTANCE)) {
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
