/*
 * touch.c - changes of mode and owner that are made here, copy-up included
 *
 * chgrp -R, chmod -R, or the kubelet with its fsGroup change every file of a copy, and each change
 * that goes through Python costs twice what the change itself does. So once Python sees that
 * somebody walks through a directory, it offers the directory's files: this file then does with one
 * what Python would do.
 *
 * It knows plain files of the template: those of one name, without extended attributes, and small
 * enough to be cloned while others wait. Everything else, and every error, is left to Python.
 *
 * What is offered is a name. Which file has it is seen on the disk, when its change comes: nothing of
 * the upper layer, and it is the template's; a file that shows the node's number, and it is that. What
 * was seen stays true as long as the node is offered, because Python takes the offer back before it
 * gives the file another name, or the name another file. Where it does more than one step with
 * directories it holds the lock: what is made here in between might get lost, such as the times of a
 * directory.
 *
 * An offer that was taken back leaves its entry until the directory is offered again, or goes.
 *
 * Most of a change is making the clone. So a worker that has answered goes on and clones what a walk comes
 * to next, without the lock, while another worker answers (touch_ahead). The template never changes: such a clone is
 * right whenever it is taken, and has no name before.
 */
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "clone.h"
#include "counters.h"
#include "kept_times.h"
#include "touch.h"

#define BUCKETS 16384u

/* As QUICK_BYTES of copyup.py: a larger clone may take long, and all others wait for it. */
#define QUICK_BYTES (INT64_C(16) << 20)

/* As in ondisk.py. */
#define MARK_INO "trusted.cowfs.ino"
#define MARK_BTIME "trusted.cowfs.btime"
#define MARK_DATA "trusted.cowfs.data"

/* O_NONBLOCK: what was a file a moment ago may be a fifo now. */
#define OPEN_FILE (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC)
#define OPEN_DIRECTORY (O_RDONLY | O_DIRECTORY | O_CLOEXEC)

/* What the mark of an mtime can hold, roughly: from 1678 to 2262. */
#define MARKABLE_S INT64_C(9200000000)

#define CHANGES (FATTR_MODE | FATTR_UID | FATTR_GID)

enum touch_state {
	TOUCH_UNKNOWN = 0, /* nobody has looked since it was offered */
	TOUCH_LOWER,	   /* the copy has nothing of that name */
	TOUCH_SHARED,	   /* the same, and the template's file is plain */
	TOUCH_UPPER,	   /* the copy has a file of its own */
	TOUCH_REFUSED,	   /* not offered any more */
};

/* Every word but state and place never changes. */
struct touch_file {
	struct touch_file *next;      /* in its bucket; lock */
	struct touch_file *next_here; /* in its directory */
	struct touch_directory *directory;
	uint64_t nodeid;
	uint32_t place[TOUCH_ORDERS]; /* lock; in each order of its directory, from 1 on; 0: in none */
	uint8_t state;		      /* lock; enum touch_state */
	char name[];
};

struct touch_directory {
	struct touch_directory *newer, *older; /* lock */
	struct touch_file *first;	       /* lock */
	struct touch_order {
		struct touch_file **files;
		uint32_t count;
	} orders[TOUCH_ORDERS]; /* lock */
	uint64_t nodeid;
	int upper_fd;
	size_t path_len;
	char path[]; /* with a slash at its end, unless it is empty */
};

void touch_init(struct touch_table *t, struct primed_table *primed)
{
	pthread_mutexattr_t attr;

	*t = (struct touch_table){.primed = primed, .walk.order = TOUCH_ORDERS};
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&t->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	pthread_mutex_init(&t->told_lock, NULL);
	stock_init(&t->stock);
}

static void close_source(struct touch_source *s)
{
	if (s->nodeid)
		close(s->fd);
	s->nodeid = 0;
}

/* ---- the table: everything is called with the lock ------------------------------------------------ */

static struct touch_file **bucket_of(struct touch_table *t, uint64_t nodeid)
{
	return &t->buckets[(nodeid * UINT64_C(0x9e3779b97f4a7c15)) >> 50]; /* 14 bits are left */
}

_Static_assert(BUCKETS == 1u << (64 - 50), "bucket_of");

static struct touch_file *find(struct touch_table *t, uint64_t nodeid)
{
	struct touch_file *f = t->buckets ? *bucket_of(t, nodeid) : NULL;

	while (f && f->nodeid != nodeid)
		f = f->next;
	return f;
}

static struct touch_directory *find_directory(struct touch_table *t, uint64_t nodeid)
{
	struct touch_directory *d = t->newest;

	while (d && d->nodeid != nodeid)
		d = d->older;
	return d;
}

static void unlink_directory(struct touch_table *t, struct touch_directory *d)
{
	*(d->newer ? &d->newer->older : &t->newest) = d->older;
	*(d->older ? &d->older->newer : &t->oldest) = d->newer;
	t->directories--;
}

static void link_newest(struct touch_table *t, struct touch_directory *d)
{
	d->newer = NULL;
	d->older = t->newest;
	*(t->newest ? &t->newest->newer : &t->oldest) = d;
	t->newest = d;
	t->directories++;
}

static void drop_orders(struct touch_directory *d)
{
	for (int o = 0; o < TOUCH_ORDERS; o++) {
		free(d->orders[o].files);
		d->orders[o] = (struct touch_order){.count = 0};
	}
}

static void close_directory(struct touch_directory *d)
{
	close(d->upper_fd);
	drop_orders(d);
	free(d);
}

static void drop_directory(struct touch_table *t, struct touch_directory *d)
{
	while (d->first) {
		struct touch_file *f = d->first;
		struct touch_file **link = bucket_of(t, f->nodeid);

		d->first = f->next_here;
		while (*link != f)
			link = &(*link)->next;
		*link = f->next;
		t->files--;
		free(f);
	}
	unlink_directory(t, d);
	close_directory(d);
}

/* false: no memory. */
static bool add(struct touch_table *t, struct touch_directory *d, uint64_t nodeid, const char *name)
{
	struct touch_file *f = find(t, nodeid);
	struct touch_file **bucket = bucket_of(t, nodeid);
	size_t size = strlen(name) + 1;

	if (f) {
		/* Under another name it is a hard link, which is refused when its change comes. */
		if (f->directory == d && f->state == TOUCH_REFUSED)
			f->state = TOUCH_UNKNOWN;
		return true;
	}
	f = malloc(sizeof(*f) + size);
	if (!f)
		return false;
	*f = (struct touch_file){
		.next = *bucket, .next_here = d->first, .directory = d, .nodeid = nodeid};
	memcpy(f->name, name, size);
	*bucket = d->first = f;
	t->files++;
	return true;
}

void touch_destroy(struct touch_table *t)
{
	pthread_mutex_lock(&t->lock);
	while (t->newest)
		drop_directory(t, t->newest);
	free(t->buckets);
	t->buckets = NULL;
	close_source(&t->source);
	pthread_mutex_unlock(&t->lock);
	stock_destroy(&t->stock);
	pthread_mutex_lock(&t->told_lock);
	free(t->told);
	t->told = NULL;
	t->room = 0;
	atomic_store(&t->told_count, 0);
	pthread_mutex_unlock(&t->told_lock);
}

/* ---- offering -------------------------------------------------------------------------------------- */

/* What the template has at a path, through no link and never outside; "" is its root. */
static int open_in_template(int tree_fd, const char *path, uint64_t flags)
{
	struct open_how how = {.flags = flags, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};

	return (int)syscall(SYS_openat2, tree_fd, *path ? path : ".", &how, sizeof(how));
}

static struct touch_directory *new_directory(const struct touch_offer *offer)
{
	size_t len = strlen(offer->path);
	struct touch_directory *d = malloc(sizeof(*d) + len + 2);

	if (!d)
		return NULL;
	*d = (struct touch_directory){.nodeid = offer->nodeid,
				      .upper_fd = fcntl(offer->upper_fd, F_DUPFD_CLOEXEC, 0)};
	if (d->upper_fd < 0) {
		free(d);
		return NULL;
	}
	memcpy(d->path, offer->path, len);
	if (len)
		d->path[len++] = '/';
	d->path[len] = 0;
	d->path_len = len;
	return d;
}

/* With the lock. The names are the template's, so a node id is the number that the listing says. */
static int add_all(struct touch_table *t, struct touch_directory *d, DIR *listing)
{
	struct dirent *entry;
	int count = 0;

	while (count < TOUCH_MAX_FILES && (entry = readdir(listing))) {
		if (entry->d_type != DT_REG)
			continue;
		while (t->files >= TOUCH_MAX_FILES && t->oldest != d)
			drop_directory(t, t->oldest);
		if (t->files >= TOUCH_MAX_FILES || !add(t, d, entry->d_ino, entry->d_name))
			break;
		count++;
	}
	return count;
}

static int compare_files(const void *a, const void *b)
{
	const struct touch_file *const *one = a, *const *other = b;

	return strcmp((*one)->name, (*other)->name);
}

static int compare_name(const void *name, const void *b)
{
	const struct touch_file *const *file = b;

	return strcmp(name, (*file)->name);
}

static void append(struct touch_directory *d, int order, struct touch_file *f)
{
	struct touch_order *o = &d->orders[order];

	o->files[o->count++] = f;
	f->place[order] = o->count;
}

/* With the lock. Without memory there is no order, and nobody goes ahead. */
static void put_in_order(struct touch_directory *d, const struct touch_offer *offer)
{
	struct touch_order *by_name = &d->orders[TOUCH_BY_NAME];
	struct touch_file **sorted;
	uint32_t count = 0;

	drop_orders(d);
	for (struct touch_file *f = d->first; f; f = f->next_here, count++)
		for (int o = 0; o < TOUCH_ORDERS; o++)
			f->place[o] = 0;
	sorted = malloc((count + 1) * sizeof(*sorted));
	for (int o = 0; o < TOUCH_ORDERS; o++)
		d->orders[o].files = malloc((count + 1) * sizeof(*sorted));
	if (!sorted || !by_name->files || !d->orders[TOUCH_BY_LISTING].files) {
		free(sorted);
		return;
	}
	count = 0;
	for (struct touch_file *f = d->first; f; f = f->next_here)
		sorted[count++] = f;
	qsort(sorted, count, sizeof(*sorted), compare_files);
	for (uint32_t i = 0; i < count; i++)
		append(d, TOUCH_BY_NAME, sorted[i]);
	free(sorted);
	for (const char *name = offer->listing; name < offer->listing + offer->listing_len;
	     name += strlen(name) + 1) {
		struct touch_file **found =
			bsearch(name, by_name->files, count, sizeof(*sorted), compare_name);

		if (found && !(*found)->place[TOUCH_BY_LISTING])
			append(d, TOUCH_BY_LISTING, *found);
	}
}

int touch_offer(struct touch_table *t, const struct touch_offer *offer)
{
	struct touch_directory *d;
	int fd = open_in_template(offer->tree_fd, offer->path, OPEN_DIRECTORY);
	DIR *listing = fd < 0 ? NULL : fdopendir(fd);
	int count = -ENOMEM;

	if (!listing) {
		count = -errno;
		if (fd >= 0)
			close(fd);
		return count;
	}
	pthread_mutex_lock(&t->lock);
	t->tree_fd = offer->tree_fd;
	t->work_fd = offer->work_fd;
	if (!t->buckets)
		t->buckets = calloc(BUCKETS, sizeof(struct touch_file *));
	d = find_directory(t, offer->nodeid);
	if (d) {
		unlink_directory(t, d);
	} else {
		d = t->buckets ? new_directory(offer) : NULL;
		count = d ? 0 : -errno;
	}
	if (d) {
		link_newest(t, d);
		while (t->directories > TOUCH_MAX_DIRECTORIES)
			drop_directory(t, t->oldest);
		count = add_all(t, d, listing);
		put_in_order(d, offer);
	}
	pthread_mutex_unlock(&t->lock);
	closedir(listing);
	return count;
}

void touch_withdraw(struct touch_table *t, uint64_t nodeid)
{
	struct touch_directory *d;
	struct touch_file *f;

	pthread_mutex_lock(&t->lock);
	f = find(t, nodeid);
	if (f) {
		f->state = TOUCH_REFUSED;
	} else {
		d = find_directory(t, nodeid);
		if (d)
			drop_directory(t, d);
	}
	pthread_mutex_unlock(&t->lock);
}

bool touch_is_offered(struct touch_table *t, uint64_t nodeid)
{
	struct touch_file *f = find(t, nodeid);

	return f && f->state != TOUCH_REFUSED;
}

/* ---- what Python has to be told --------------------------------------------------------------------- */

/* Room for one more, so that telling cannot fail afterwards; with the lock, so nobody else takes it. */
static bool make_room(struct touch_table *t)
{
	bool room = true;

	pthread_mutex_lock(&t->told_lock);
	if (atomic_load(&t->told_count) == t->room) {
		uint32_t more = t->room ? 2 * t->room : 64;
		struct touched *grown = realloc(t->told, more * sizeof(*grown));

		room = grown;
		if (grown) {
			t->told = grown;
			t->room = more;
		}
	}
	pthread_mutex_unlock(&t->told_lock);
	return room;
}

static void tell(struct touch_table *t, uint64_t nodeid, bool unprimed)
{
	uint32_t count;

	pthread_mutex_lock(&t->told_lock);
	count = atomic_load(&t->told_count);
	t->told[count] = (struct touched){.nodeid = nodeid, .unprimed = unprimed};
	atomic_store(&t->told_count, count + 1);
	pthread_mutex_unlock(&t->told_lock);
}

struct touched *touch_take(struct touch_table *t, uint32_t *count)
{
	struct touched *told = NULL;

	*count = 0;
	if (!atomic_load(&t->told_count))
		return NULL;
	pthread_mutex_lock(&t->told_lock);
	*count = atomic_load(&t->told_count);
	/* A copy: a change that is under way counts on the room. */
	told = malloc(*count * sizeof(*told));
	if (told) {
		memcpy(told, t->told, *count * sizeof(*told));
		atomic_store(&t->told_count, 0);
	} else {
		*count = 0;
	}
	pthread_mutex_unlock(&t->told_lock);
	return told;
}

/* ---- looking ----------------------------------------------------------------------------------------- */

/* Whether users see the file under the number of the node, and it has no other name. */
static bool is_shown_as(int fd, uint64_t nodeid)
{
	struct stat st;
	uint64_t ino;
	ssize_t n;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_nlink != 1)
		return false;
	n = fgetxattr(fd, MARK_INO, &ino, sizeof(ino));
	if (n < 0)
		return errno == ENODATA && st.st_ino == nodeid;
	return n == sizeof(ino) && le64toh(ino) == nodeid;
}

static bool is_plain(int source, uint64_t nodeid, struct stat *st)
{
	ssize_t attributes;

	if (fstat(source, st) < 0 || !S_ISREG(st->st_mode) || st->st_ino != nodeid ||
	    st->st_nlink != 1 || st->st_blocks * INT64_C(512) > QUICK_BYTES ||
	    st->st_mtim.tv_sec > MARKABLE_S || st->st_mtim.tv_sec < -MARKABLE_S)
		return false;
	attributes = flistxattr(source, NULL, 0);
	return attributes == 0 || (attributes < 0 && errno == EOPNOTSUPP);
}

/* false: Python goes there in steps. */
static bool find_path(const struct touch_file *f, char path[PATH_MAX])
{
	return snprintf(path, PATH_MAX, "%s%s", f->directory->path, f->name) < PATH_MAX;
}

/* Of a path of the template, if it is plain. */
static bool open_source(int tree_fd, uint64_t nodeid, struct touch_source *s)
{
	s->fd = open_in_template(tree_fd, s->path, OPEN_FILE);
	if (s->fd < 0)
		return false;
	if (!is_plain(s->fd, nodeid, &s->st)) {
		close(s->fd);
		return false;
	}
	s->nodeid = nodeid;
	return true;
}

/* The template's file is open afterwards, if it is plain. */
static bool find_source(struct touch_table *t, const struct touch_file *f)
{
	if (t->source.nodeid == f->nodeid)
		return true;
	close_source(&t->source);
	return find_path(f, t->source.path) && open_source(t->tree_fd, f->nodeid, &t->source);
}

/* What is no file is not opened: it may be a device. */
static void look_in_upper(struct touch_file *f)
{
	int upper = f->directory->upper_fd;
	struct stat st;
	int fd;

	if (fstatat(upper, f->name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno == ENOENT)
			f->state = TOUCH_LOWER;
		return;
	}
	fd = S_ISREG(st.st_mode) ? openat(upper, f->name, OPEN_FILE) : -1;
	if (fd < 0)
		return;
	if (is_shown_as(fd, f->nodeid))
		f->state = TOUCH_UPPER;
	close(fd);
}

/* Find out what has the name: afterwards the file is SHARED or UPPER. false: it may not be changed here. */
static bool look(struct touch_table *t, struct touch_file *f)
{
	if (f->state == TOUCH_UNKNOWN)
		look_in_upper(f);
	if (f->state == TOUCH_LOWER && (stock_is_ready(&t->stock, f->nodeid) || find_source(t, f)))
		f->state = TOUCH_SHARED;
	return f->state == TOUCH_SHARED || f->state == TOUCH_UPPER;
}

/* ---- changing ---------------------------------------------------------------------------------------- */

bool touch_may(const struct fuse_setattr_in *in)
{
	return in->valid & CHANGES && !(in->valid & ~(CHANGES | FATTR_KILL_SUIDGID));
}

/* A change of owner takes setuid and setgid away for every caller, with one exception: setgid without
 * execution by the group stays when root makes the change. Who the caller is, Python finds out. */
static bool depends_on_caller(int fd, const struct fuse_setattr_in *in)
{
	struct stat st;

	return in->valid & (FATTR_UID | FATTR_GID) &&
	       (fstat(fd, &st) < 0 || (st.st_mode & (S_ISGID | S_IXGRP)) == S_ISGID);
}

static int change(int fd, const struct fuse_setattr_in *in)
{
	if (depends_on_caller(fd, in))
		return -1;
	if (in->valid & (FATTR_UID | FATTR_GID) &&
	    fchown(fd, in->valid & FATTR_UID ? in->uid : (uid_t)-1,
		   in->valid & FATTR_GID ? in->gid : (gid_t)-1) < 0)
		return -1;
	return in->valid & FATTR_MODE ? fchmod(fd, in->mode & 07777) : 0;
}

/* A clone of the template's file, marked as having its data, or -1. */
static int clone_source(struct tally *tally, int work_fd, const struct touch_source *s)
{
	uint64_t start = now_ns();
	int fd;
	uint64_t ino = htole64(s->nodeid);
	int64_t mtime = (int64_t)s->st.st_mtim.tv_sec * 1000000000 + s->st.st_mtim.tv_nsec;
	uint64_t head = htole64((uint64_t)mtime);
	size_t path_len = strlen(s->path);
	char data[sizeof(head) + PATH_MAX];
	struct clone_mark marks[] = {{MARK_INO, &ino, sizeof(ino)},
				     {MARK_DATA, data, sizeof(head) + path_len}};

	memcpy(data, &head, sizeof(head));
	memcpy(data + sizeof(head), s->path, path_len);
	fd = clone_unnamed(s->fd, &s->st, work_fd, true, marks, 2, MARK_BTIME);
	if (fd >= 0 && tally)
		tally_clone(tally, now_ns() - start);
	return fd;
}

static int link_keeping_times(const struct touch_table *t, int fd, int directory, const char *name)
{
	int err = kept_times_begin(t->ledger, directory);

	if (err)
		return err;
	err = linkat(fd, "", directory, name, AT_EMPTY_PATH) < 0 ? -errno : 0;
	kept_times_end(t->ledger, directory);
	return err;
}

/* In which order the walk goes on. It has one in a directory when it went from one file to the next. */
static void note_step(struct touch_table *t, const struct touch_file *f)
{
	const struct touch_file *last = find(t, t->walk.nodeid);
	int order = 0;

	t->walk.nodeid = f->nodeid;
	if (!last || last->directory != f->directory)
		return;
	while (order < TOUCH_ORDERS &&
	       !(last->place[order] && f->place[order] == last->place[order] + 1))
		order++;
	t->walk.order = order;
}

/* The file gets its name when it is as the caller wants it: nobody sees it half made. */
static bool copy_up(struct touch_table *t, struct touch_file *f,
		    const struct fuse_setattr_in *in, struct stat *st)
{
	struct fuse_entry_out primed;
	bool unprimed;
	bool done;
	int fd;

	if (!make_room(t))
		return false;
	fd = stock_take(&t->stock, f->nodeid);
	if (fd < 0 && find_source(t, f))
		fd = clone_source(t->tally, t->work_fd, &t->source);
	if (fd < 0)
		return false;
	done = change(fd, in) == 0 && link_keeping_times(t, fd, f->directory->upper_fd, f->name) == 0;
	if (done) {
		note_step(t, f);
		unprimed = primed_take(t->primed, f->directory->nodeid, f->name, strlen(f->name),
				       &primed);
		f->state = TOUCH_UPPER;
		if (t->tally)
			tally_add(t->tally, TALLY_COPY_UPS, 1);
		tell(t, f->nodeid, unprimed);
		done = fstat(fd, st) == 0;
	}
	close(fd);
	return done;
}

static bool change_upper(const struct touch_file *f, const struct fuse_setattr_in *in,
			 struct stat *st)
{
	int fd = openat(f->directory->upper_fd, f->name, OPEN_FILE);
	bool done;

	if (fd < 0)
		return false;
	done = change(fd, in) == 0 && fstat(fd, st) == 0;
	close(fd);
	return done;
}

bool touch_change(struct touch_table *t, uint64_t nodeid, const struct fuse_setattr_in *in,
		  struct stat *st)
{
	struct touch_file *f = find(t, nodeid);
	bool done;

	if (!f)
		return false;
	done = look(t, f) &&
	       (f->state == TOUCH_UPPER ? change_upper(f, in, st) : copy_up(t, f, in, st));
	if (!done)
		f->state = TOUCH_REFUSED;
	return done;
}

bool touch_lacks(struct touch_table *t, uint64_t nodeid, const char *attribute)
{
	struct touch_file *f = find(t, nodeid);
	bool lacks;
	int fd;

	if (!f || !look(t, f))
		return false;
	if (f->state == TOUCH_SHARED)
		return true; /* what is plain has none at all */
	fd = openat(f->directory->upper_fd, f->name, OPEN_FILE);
	lacks = fd >= 0 && fgetxattr(fd, attribute, NULL, 0) < 0 && errno == ENODATA;
	if (fd >= 0)
		close(fd);
	return lacks;
}

/* ---- ahead of a walk ------------------------------------------------------------------------------- */

/* With the lock: files that the walk comes to next, and nobody has looked at yet. */
static void plan(struct touch_table *t)
{
	const struct touch_file *at = find(t, t->walk.nodeid);
	const struct touch_order *order;
	char path[PATH_MAX];
	uint32_t place;

	if (!at || t->walk.order == TOUCH_ORDERS || !at->place[t->walk.order])
		return;
	order = &at->directory->orders[t->walk.order];
	place = at->place[t->walk.order];
	for (uint32_t i = place; i < order->count && i < place + STOCK_CLONES; i++) {
		struct touch_file *f = order->files[i];

		if (f->state != TOUCH_UNKNOWN)
			continue;
		look_in_upper(f);
		if (f->state == TOUCH_UNKNOWN)
			f->state = TOUCH_REFUSED; /* as its own SETATTR would find: looked at once */
		if (f->state == TOUCH_LOWER && find_path(f, path))
			stock_plan(&t->stock, f->nodeid, path);
	}
}

/* A clone of what is planned, or -1. */
static int make(struct tally *tally, const struct stock_clone *planned, int tree_fd, int work_fd)
{
	struct touch_source source;
	int fd;

	strcpy(source.path, planned->path);
	if (!open_source(tree_fd, planned->nodeid, &source))
		return -1;
	fd = clone_source(tally, work_fd, &source);
	close(source.fd);
	return fd;
}

void touch_ahead(struct touch_table *t)
{
	int tree_fd, work_fd;
	bool any = true;

	if (atomic_exchange(&t->ahead, true))
		return;
	while (any) {
		struct stock_clone *planned;

		pthread_mutex_lock(&t->lock);
		plan(t);
		tree_fd = t->tree_fd;
		work_fd = t->work_fd;
		pthread_mutex_unlock(&t->lock);
		any = false;
		while ((planned = stock_begin(&t->stock))) {
			stock_made(&t->stock, planned, make(t->tally, planned, tree_fd, work_fd));
			any = true;
		}
	}
	atomic_store(&t->ahead, false);
}
