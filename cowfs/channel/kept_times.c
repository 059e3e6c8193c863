/*
 * kept_times.c - a change of a directory that is none that users made, and moves no time that they see
 *
 * A daemon that is killed between the change and the setting back leaves it to the next one: what the
 * times were is in the ledger.
 */
#include "kept_times.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "handle.h"

int kept_times_begin(struct ledger *l, int directory)
{
	struct ledger_times *kept = ledger_times(l);
	struct stat st;

	if (fstat(directory, &st) < 0)
		return -errno;
	kept->times[0] = (struct ledger_time){st.st_atim.tv_sec, st.st_atim.tv_nsec};
	kept->times[1] = (struct ledger_time){st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
	kept->handle_len = handle_of(directory, &kept->handle);
	atomic_store_explicit(&kept->noted, 1, memory_order_seq_cst);
	return 0;
}

static void set_back(const struct ledger_times *kept, int directory)
{
	struct timespec times[2];

	for (int i = 0; i < 2; i++) {
		times[i].tv_sec = (time_t)kept->times[i].sec;
		times[i].tv_nsec = (long)kept->times[i].nsec;
	}
	utimensat(directory, "", times, AT_EMPTY_PATH);
}

void kept_times_end(struct ledger *l, int directory)
{
	struct ledger_times *kept = ledger_times(l);

	set_back(kept, directory);
	atomic_store_explicit(&kept->noted, 0, memory_order_seq_cst);
}

void kept_times_restore(struct ledger *l, int volume_fd)
{
	struct ledger_times *kept = ledger_times(l);
	int fd;

	if (!atomic_load(&kept->noted))
		return;
	fd = handle_open(volume_fd, kept->handle_len, &kept->handle,
			 O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0) {
		set_back(kept, fd);
		close(fd);
	}
	atomic_store(&kept->noted, 0);
}
