/*
 * served.c - who reads and writes what is not passed through, while somebody watches
 *
 * Knows threads and numbers of nodes. While nobody watches a request costs one load. The lock is held
 * for a few instructions, and once for each new row for two system calls in /proc, which wait for
 * nobody.
 */
#include "served.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (sizeof(struct served_head) + SERVED_ROWS * sizeof(struct served_row))
#define BUCKETS (2u * SERVED_ROWS)

static const char magic[8] = "cowfssrv";

void served_init(struct served *s)
{
	void *at = MAP_FAILED;

	*s = (struct served){.fd = memfd_create("cowfs-served", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
	pthread_mutex_init(&s->lock, NULL);
	if (s->fd >= 0 && ftruncate(s->fd, SIZE) == 0 &&
	    fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->fd, 0);
	if (at == MAP_FAILED) {
		if (s->fd >= 0)
			close(s->fd);
		s->fd = -1;
		return;
	}
	s->head = at;
	s->rows = (struct served_row *)((uint8_t *)at + sizeof(struct served_head));
	memcpy(s->head->magic, magic, sizeof(magic));
	s->head->layout = SERVED_LAYOUT;
}

void served_destroy(struct served *s)
{
	if (s->fd >= 0) {
		munmap(s->head, SIZE);
		close(s->fd);
	}
	free(s->index);
	pthread_mutex_destroy(&s->lock);
}

/* What proc_pid_status(5) says of a thread: its name, with escapes, and the process that it is of. */
static void find_out(struct served_row *row)
{
	char path[64], text[512];
	const char *tgid;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%u/status", row->tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return; /* of another pid namespace, or nobody: the kernel writes back */
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return;
	text[n] = '\0';
	sscanf(text, "Name:\t%15[^\n]", row->name);
	tgid = strstr(text, "\nTgid:\t");
	if (tgid)
		row->pid = (uint32_t)strtoul(tgid + 7, NULL, 10);
}

static uint32_t hash(uint64_t nodeid, uint32_t tid)
{
	uint64_t h = (nodeid * 31 + tid) * UINT64_C(0x9e3779b97f4a7c15);
	return (uint32_t)(h >> 40) % BUCKETS;
}

/* With the lock; NULL: there is no room. There are twice as many buckets as rows, so one is free. */
static struct served_row *find(struct served *s, uint32_t tid, uint64_t nodeid)
{
	uint32_t used = atomic_load_explicit(&s->head->used, memory_order_relaxed);
	uint32_t at = hash(nodeid, tid);
	struct served_row *row;

	for (; s->index[at]; at = (at + 1) % BUCKETS) {
		row = &s->rows[s->index[at] - 1];
		if (row->nodeid == nodeid && row->tid == tid)
			return row;
	}
	if (used == SERVED_ROWS)
		return NULL;
	row = &s->rows[used];
	*row = (struct served_row){.nodeid = nodeid, .tid = tid};
	find_out(row);
	s->index[at] = (uint16_t)(used + 1);
	atomic_store_explicit(&s->head->used, used + 1, memory_order_release);
	return row;
}

/* With the lock: the first request that somebody watches. */
static void begin(struct served *s)
{
	memset(s->index, 0, BUCKETS * sizeof(*s->index));
	atomic_store(&s->head->used, 0);
	atomic_store(&s->head->lost, 0);
	atomic_fetch_add(&s->head->session, 1);
}

void served_count(struct served *s, uint64_t now_ns, uint32_t tid, uint64_t nodeid, bool wrote,
		  uint64_t bytes)
{
	struct served_row *row;
	uint64_t until;

	if (s->fd < 0)
		return;
	until = atomic_load_explicit(&s->head->until, memory_order_relaxed);
	if (until < now_ns)
		return;
	pthread_mutex_lock(&s->lock);
	if (!s->index) {
		s->index = calloc(BUCKETS, sizeof(*s->index));
		if (!s->index) {
			pthread_mutex_unlock(&s->lock);
			return;
		}
	}
	if (s->until < now_ns)
		begin(s);
	s->until = until;
	row = find(s, tid, nodeid);
	if (!row) {
		atomic_fetch_add_explicit(&s->head->lost, 1, memory_order_relaxed);
	} else {
		atomic_fetch_add_explicit(wrote ? &row->writes : &row->reads, 1,
					  memory_order_relaxed);
		atomic_fetch_add_explicit(wrote ? &row->written : &row->read_bytes, bytes,
					  memory_order_relaxed);
	}
	pthread_mutex_unlock(&s->lock);
}
