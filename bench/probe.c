/*
 * The timed loops of the benchmark.
 *
 * They are in C because one stat of a cached file takes less time than one Python function call. The
 * program knows nothing about peers: it gets paths, does one kind of access, and prints "key value"
 * lines. Times are seconds of CLOCK_MONOTONIC and cover the loop alone, not the start of the process
 * nor the collecting of names. Any failed call ends it with exit status 1 and one line on stderr.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static void die(const char *what, const char *which)
{
	fprintf(stderr, "%s %s: %s\n", what, which, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
	qsort(values, count, sizeof *values, by_value);
	if (count % 2)
		return values[count / 2];
	return (values[count / 2 - 1] + values[count / 2]) / 2;
}

static void *allocate(size_t bytes)
{
	void *memory;

	if (posix_memalign(&memory, MIB, bytes)) {
		errno = ENOMEM;
		die("allocate", "buffer");
	}
	memset(memory, 0x5a, bytes);	/* no page fault may fall into a timed loop */
	return memory;
}

static size_t number(const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (!*text || *end) {
		errno = EINVAL;
		die("number", text);
	}
	return value;
}

static int opened(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		die("open", path);
	return fd;
}

/* ---- data: never zeros, which a disk, a loop device or a hole could answer for nothing */

static void randomize(uint64_t *words, size_t bytes, uint64_t *state)
{
	for (size_t i = 0; i < bytes / sizeof *words; i++) {
		*state ^= *state << 13;
		*state ^= *state >> 7;
		*state ^= *state << 17;
		words[i] = *state;
	}
}

static void write_random(const char *path, size_t bytes, void *buffer, uint64_t *state)
{
	int fd = opened(path, O_WRONLY | O_CREAT | O_TRUNC);

	while (bytes) {
		size_t part = bytes < MIB ? bytes : MIB;
		char *at = buffer;

		randomize(buffer, (part + 7) & ~(size_t)7, state);
		bytes -= part;
		while (part) {
			ssize_t done = write(fd, at, part);

			if (done < 0)
				die("write", path);
			at += done;
			part -= (size_t)done;
		}
	}
	if (close(fd))
		die("close", path);
}

/* fill PATH BYTES SEED */
static void do_fill(char **args)
{
	uint64_t state = number(args[2]) * 0x9e3779b97f4a7c15u | 1;

	write_random(args[0], number(args[1]), allocate(MIB), &state);
}

/* tree DIR DIRECTORIES FILES_EACH BYTES_EACH SEED */
static void do_tree(char **args)
{
	size_t dirs = number(args[1]), files = number(args[2]), bytes = number(args[3]);
	uint64_t state = number(args[4]) * 0x9e3779b97f4a7c15u | 1;
	void *buffer = allocate(MIB);
	char path[PATH_MAX];

	for (size_t d = 0; d < dirs; d++) {
		snprintf(path, sizeof path, "%s/part-%04zu", args[0], d);
		if (mkdir(path, 0755) && errno != EEXIST)
			die("mkdir", path);
		for (size_t f = 0; f < files; f++) {
			snprintf(path, sizeof path, "%s/part-%04zu/shard-%05zu", args[0], d, f);
			write_random(path, bytes, buffer, &state);
		}
	}
}

/* ---- whole files */

static void read_whole(int fd, const char *path, char *buffer, size_t block)
{
	off_t at = 0;
	ssize_t got;

	while ((got = pread(fd, buffer, block, at)) > 0)
		at += got;
	if (got < 0)
		die("read", path);
}

/*
 * read PATH BLOCK DROP: seconds of one read from beginning to end. With DROP the pages of this inode are
 * dropped first; on a FUSE file that is not passed through those are FUSE's own, not the backing
 * file's.
 */
static void do_read(char **args)
{
	size_t block = number(args[1]);
	char *buffer = allocate(block);
	int fd = opened(args[0], O_RDONLY);
	double start;

	if (number(args[2]) && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		die("fadvise", args[0]);
	start = now();
	read_whole(fd, args[0], buffer, block);
	printf("seconds %.9f\n", now() - start);
}

/* Reads each file in a process of its own; all begin at once when the pipe is closed. */
static void start_reader(const char *path, size_t block, const int gate[2])
{
	pid_t child = fork();

	if (child < 0)
		die("fork", path);
	if (child)
		return;
	char *buffer = allocate(block);
	int fd = opened(path, O_RDONLY);

	close(gate[1]);
	if (read(gate[0], buffer, 1) < 0)
		die("read", "pipe");
	read_whole(fd, path, buffer, block);
	exit(0);
}

/* readers BLOCK PATH...: seconds until all files are read, all of them at once */
static void do_readers(char **args)
{
	size_t block = number(args[0]);
	int gate[2], status;
	double start;

	if (pipe(gate))
		die("pipe", args[0]);
	for (char **path = args + 1; *path; path++)
		start_reader(*path, block, gate);
	usleep(100 * 1000);	/* until they have allocated their buffers */
	start = now();
	close(gate[1]);
	while (wait(&status) > 0)
		if (status)
			exit(1);
	printf("seconds %.9f\n", now() - start);
}

/* willneed PATH PIECE: ask for all of a file, PIECE bytes in a call; seconds of the calls alone */
static void do_willneed(char **args)
{
	int fd = opened(args[0], O_RDONLY), error;
	off_t piece = (off_t)number(args[1]);
	double start = now();
	struct stat st;

	if (fstat(fd, &st))
		die("stat", args[0]);
	for (off_t at = 0; at < st.st_size; at += piece) {
		error = posix_fadvise(fd, at, piece, POSIX_FADV_WILLNEED);
		if (error) {
			errno = error;
			die("fadvise", args[0]);
		}
	}
	printf("seconds %.9f\n", now() - start);
}

/* map PATH REPEATS: one byte of every page, then every byte, each through a mapping of its own */
static void do_map(char **args)
{
	size_t repeats = number(args[1]), page = (size_t)sysconf(_SC_PAGESIZE);
	double *touch = allocate(repeats * sizeof *touch), *whole = allocate(repeats * sizeof *whole);
	int fd = opened(args[0], O_RDONLY);
	volatile uint64_t sink;
	struct stat st;

	if (fstat(fd, &st))
		die("stat", args[0]);
	size_t bytes = (size_t)st.st_size;
	for (size_t r = 0; r < 2 * repeats; r++) {
		uint64_t sum = 0;
		double start = now();
		char *data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);

		if (data == MAP_FAILED)
			die("mmap", args[0]);
		if (r % 2) {
			const uint64_t *words = (const uint64_t *)data;

			for (size_t i = 0; i < bytes / sizeof *words; i++)
				sum += words[i];
		} else {
			for (size_t i = 0; i < bytes; i += page)
				sum += (unsigned char)data[i];
		}
		(r % 2 ? whole : touch)[r / 2] = now() - start;
		sink = sum;
		if (munmap(data, bytes))
			die("munmap", args[0]);
	}
	(void)sink;
	printf("touch %.9f\nread %.9f\n", median(touch, repeats), median(whole, repeats));
}

/* overwrite PATH BLOCK: the whole of an existing file, then fsync, each timed */
static void do_overwrite(char **args)
{
	size_t block = number(args[1]);
	char *buffer = allocate(block);
	uint64_t state = 88172645463325252u;
	int fd = opened(args[0], O_RDWR);
	struct stat st;
	double start, written;

	randomize((uint64_t *)buffer, block, &state);
	if (fstat(fd, &st))
		die("stat", args[0]);
	start = now();
	for (off_t at = 0; at < st.st_size;) {
		size_t left = (size_t)(st.st_size - at);
		ssize_t done = pwrite(fd, buffer, left < block ? left : block, at);

		if (done < 0)
			die("write", args[0]);
		at += done;
	}
	written = now();
	if (fsync(fd))
		die("fsync", args[0]);
	printf("write %.9f\nfsync %.9f\n", written - start, now() - written);
}

/* first-write PATH...: median seconds of open for writing, 4 KiB written at the start, close */
static void do_first_write(char **args)
{
	char *buffer = allocate(4096);
	size_t count = 0;

	while (args[count])
		count++;
	double *seconds = allocate((count + 1) * sizeof *seconds);
	for (size_t i = 0; i < count; i++) {
		double start = now();
		int fd = opened(args[i], O_WRONLY);

		if (pwrite(fd, buffer, 4096, 0) != 4096)
			die("write", args[i]);
		if (close(fd))
			die("close", args[i]);
		seconds[i] = now() - start;
	}
	printf("seconds %.9f\n", median(seconds, count));
}

/* ---- many names: taken from REFERENCE, used under ROOT, so that ROOT is untouched before the loop */

static char **names;
static size_t name_count, name_room;

static void add_name(const char *name)
{
	if (name_count == name_room) {
		name_room = name_room ? 2 * name_room : 1024;
		names = realloc(names, name_room * sizeof *names);
		if (!names)
			die("allocate", "names");
	}
	names[name_count] = strdup(name);
	if (!names[name_count++])
		die("allocate", "names");
}

static void collect(const char *reference, const char *below, mode_t wanted)
{
	char path[PATH_MAX], inner[PATH_MAX];
	struct dirent *entry;
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof path, "%s/%s", reference, below);
	dir = opendir(path);
	if (!dir)
		die("opendir", path);
	if (wanted == S_IFDIR)
		add_name(below);
	while ((entry = readdir(dir))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW))
			die("stat", entry->d_name);
		if (snprintf(inner, sizeof inner, "%s%s%s", strcmp(below, ".") ? below : "",
			     strcmp(below, ".") ? "/" : "", entry->d_name) >= (int)sizeof inner) {
			errno = ENAMETOOLONG;
			die("path", entry->d_name);
		}
		if (S_ISDIR(st.st_mode))
			collect(reference, inner, wanted);
		else if ((st.st_mode & S_IFMT) == wanted)
			add_name(inner);
	}
	closedir(dir);
}

static void one_open(const char *name, char *buffer)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die("open", name);
	if (read(fd, buffer, 4096) < 0)
		die("read", name);
	if (close(fd))
		die("close", name);
}

static void one_stat(const char *name, char *buffer)
{
	struct stat st;

	(void)buffer;
	if (lstat(name, &st))
		die("stat", name);
}

static void one_list(const char *name, char *buffer)
{
	DIR *dir = opendir(name);

	(void)buffer;
	if (!dir)
		die("opendir", name);
	errno = 0;
	while (readdir(dir))
		;
	if (errno)
		die("readdir", name);
	closedir(dir);
}

/* open|stat|list ROOT REFERENCE PASSES: median seconds of a pass over all names */
static void do_names(char **args, void (*one)(const char *, char *), mode_t wanted)
{
	size_t passes = number(args[2]);
	double *seconds = allocate((passes + 1) * sizeof *seconds);
	char *buffer = allocate(4096);

	collect(args[1], ".", wanted);
	if (chdir(args[0]))
		die("chdir", args[0]);
	for (size_t p = 0; p < passes; p++) {
		double start = now();

		for (size_t i = 0; i < name_count; i++)
			one(names[i], buffer);
		seconds[p] = now() - start;
	}
	printf("names %zu\nseconds %.9f\n", name_count, median(seconds, passes));
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	char **args = argv + 2;
	int given = argc - 2;

	if (!strcmp(command, "fill") && given == 3)
		do_fill(args);
	else if (!strcmp(command, "tree") && given == 5)
		do_tree(args);
	else if (!strcmp(command, "read") && given == 3)
		do_read(args);
	else if (!strcmp(command, "readers") && given >= 2)
		do_readers(args);
	else if (!strcmp(command, "willneed") && given == 2)
		do_willneed(args);
	else if (!strcmp(command, "map") && given == 2)
		do_map(args);
	else if (!strcmp(command, "overwrite") && given == 2)
		do_overwrite(args);
	else if (!strcmp(command, "first-write") && given >= 1)
		do_first_write(args);
	else if (!strcmp(command, "open") && given == 3)
		do_names(args, one_open, S_IFREG);
	else if (!strcmp(command, "stat") && given == 3)
		do_names(args, one_stat, S_IFREG);
	else if (!strcmp(command, "list") && given == 3)
		do_names(args, one_list, S_IFDIR);
	else {
		fprintf(stderr, "probe: unknown command or wrong number of arguments: %s\n", command);
		return 1;
	}
	return 0;
}
