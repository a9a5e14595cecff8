/*
 * The CNI plugin: pass one call to the agent, print what it answers.
 *
 * plugin.py in C, where a static executable has come and gone before an
 * interpreter begins; one suite of tests for both.  plugin.py says what goes
 * over the socket and why.  What concerns only C:
 *
 * Settings.  A node needs no compiler: cni.install writes them over `settings`
 * in a copy of this program, which it finds by MARK.  In a file of their own
 * they would be a second thing to read in every call and to disagree, and each
 * of two agents on one machine would have to be told apart by something else.
 *
 * Memory.  Static, as large as it may become; unused pages cost nothing.
 * Variables are sent from where they lie.  Only opendir(3) allocates.
 *
 * Time.  One timer bounds the call: its signal ends whatever waits.  Should it
 * come between a check and a system call, it comes again a moment later.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MARK "muslin-cni settings 1" /* another layout, another number */
#define MAX_CONFIG (1 << 20) /* bytes of standard input; one more is sent on, to be refused */
#define MAX_ANSWER (4 << 20)
#define MAX_ENTRIES 4096 /* names in the journal */
#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_SIZE 36
#define VERSION_DEADLINE 2000000 /* microseconds; the agent may not be there yet */
#define TICK 100000 /* microseconds from signal to signal after the deadline */

/* Neither const nor static, so that the compiler does not take the values for known. */
struct settings {
	char mark[24];
	uint64_t deadline; /* microseconds */
	char seconds[32]; /* the same, for a person */
	char socket[108];
	char journal[256];
} settings = { .mark = MARK, .deadline = 60000000, .seconds = "60.0", .socket = "/" };
_Static_assert(offsetof(struct settings, journal) == 172, "cni.install packs these fields");

static char version[] = "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"
			"[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}";
static const char *const variables[] = {
	"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH",
};
enum { VARIABLES = sizeof(variables) / sizeof(*variables), PARTS = VARIABLES + 2 };

static char config[MAX_CONFIG + 1];
static size_t config_size;
static unsigned char head[4], answer[MAX_ANSWER];
static char message[768];
static volatile sig_atomic_t late;

static void alarmed(int number)
{
	(void)number;
	late = 1;
}

static void start_timer(uint64_t us)
{
	struct itimerval timer = { { 0, TICK }, { us / 1000000, us % 1000000 } };
	struct sigaction action = { .sa_handler = alarmed }; /* no SA_RESTART: waits end */
	sigset_t mask;

	sigaction(SIGALRM, &action, NULL);
	sigemptyset(&mask);
	sigaddset(&mask, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &mask, NULL); /* a parent's mask is inherited through exec */
	setitimer(ITIMER_REAL, &timer, NULL);
}

static void stop_timer(void)
{
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	late = 0;
}

static bool interrupted(void)
{
	return errno == EINTR && !late;
}

__attribute__((format(printf, 2, 3))) static int failed(int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(message, sizeof(message), format, arguments);
	va_end(arguments);
	return code;
}

/* Try again later; for STATUS, not available. */
static int unreachable(const char *why)
{
	int code = strcmp(getenv(variables[0]), "STATUS") ? 11 : 50;

	if (late)
		return failed(code, "muslin-agent at %s: does not answer within %s s",
			      settings.socket, settings.seconds);
	return failed(code, "muslin-agent at %s: %s; is it running?", settings.socket, why);
}

/* Standard input to its end. */
static int read_config(void)
{
	while (config_size < sizeof(config)) {
		ssize_t got = read(0, config + config_size, sizeof(config) - config_size);

		if (!got)
			break;
		if (got > 0)
			config_size += got;
		else if (late)
			return failed(5, "standard input was not closed");
		else if (!interrupted())
			return failed(5, "standard input: %s", strerror(errno));
	}
	return 0;
}

/* All of it, or false and errno; `parts` is used up. */
static bool put(int fd, struct iovec *parts, int count)
{
	while (count) {
		ssize_t sent = writev(fd, parts, count);

		if (sent < 0 && !interrupted())
			return false;
		sent = sent < 0 ? 0 : sent;
		for (; count && (size_t)sent >= parts->iov_len; parts++, count--)
			sent -= parts->iov_len;
		if (count) {
			parts->iov_base = (char *)parts->iov_base + sent;
			parts->iov_len -= sent;
		}
	}
	return true;
}

/* The request, to the agent or into the journal. */
static bool put_request(int fd)
{
	struct iovec parts[PARTS];
	size_t size = config_size;

	for (int i = 0; i < VARIABLES; i++) {
		char *value = getenv(variables[i]);

		value = value ? value : "";
		parts[1 + i] = (struct iovec){ value, strlen(value) + 1 }; /* with its NUL */
		size += parts[1 + i].iov_len;
	}
	for (int i = 0; i < 4; i++)
		head[i] = size >> (24 - 8 * i);
	parts[0] = (struct iovec){ head, sizeof(head) };
	parts[PARTS - 1] = (struct iovec){ config, config_size };
	return put(fd, parts, PARTS);
}

/* Exactly `size` bytes; an end before the first of an answer is the agent's end. */
static int receive(int fd, unsigned char *to, size_t size, bool begun)
{
	for (size_t have = 0; have < size;) {
		ssize_t got = recv(fd, to + have, size - have, 0);

		if (got > 0) {
			have += got;
		} else if (got < 0 && errno != ECONNRESET) { /* reset: it died with ours unread */
			if (!interrupted())
				return unreachable(strerror(errno));
		} else if (begun || have) {
			return failed(5, "the agent's answer ends early");
		} else {
			return unreachable("ended before it answered");
		}
	}
	return 0;
}

/* 0 with `size` bytes of `answer`, its status first; or the code of a failure. */
static int ask(int fd, size_t *size)
{
	struct sockaddr_un agent = { .sun_family = AF_UNIX };
	int code;

	memcpy(agent.sun_path, settings.socket, sizeof(agent.sun_path));
	while (connect(fd, (struct sockaddr *)&agent, sizeof(agent)))
		if (!interrupted())
			return unreachable(strerror(errno));
	if (!put_request(fd) && errno != EPIPE) /* refused unread: the answer says why */
		return unreachable(strerror(errno));
	code = receive(fd, head, sizeof(head), false);
	if (code)
		return code;
	*size = (size_t)head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3];
	if (!*size || *size > sizeof(answer))
		return failed(5, "the agent's answer is not one: length %zu", *size);
	code = receive(fd, answer, *size, true);
	/* No JSON parser here, but what is plainly no object never reaches the runtime. */
	if (!code && (answer[0] > 1 || (*size == 1 ? answer[0] : answer[1] != '{')))
		return failed(5, "the agent's answer is not one: status %d", answer[0]);
	return code;
}

/* Which boot this is; or false and errno. */
static bool read_boot_id(char *to)
{
	int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC); /* our end, in a moment, closes it */

	return fd >= 0 && read(fd, to, BOOT_ID_SIZE) == BOOT_ID_SIZE;
}

/* Leave the request for the agent's next start, whole and durable; or false and errno. */
static bool write_entry(DIR *directory)
{
	int fd, in = dirfd(directory), names = -2; /* "." and ".." */
	char hidden[96], boot[BOOT_ID_SIZE + 1] = "";
	struct timespec now;
	bool written;

	while (readdir(directory))
		if (++names == MAX_ENTRIES) {
			errno = EDQUOT;
			return false;
		}
	if (!read_boot_id(boot))
		return false;
	clock_gettime(CLOCK_BOOTTIME, &now);
	snprintf(hidden, sizeof(hidden), ".%020llu-%010ld-%s",
		 now.tv_sec * 1000000000ULL + now.tv_nsec, (long)getpid(), boot);
	fd = openat(in, hidden, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	written = put_request(fd) && !fsync(fd) && !renameat(in, hidden, in, hidden + 1);
	if (!written) {
		int why = errno;

		unlinkat(in, hidden, 0);
		errno = why;
	}
	close(fd);
	return written && !fsync(in);
}

static bool journal(void)
{
	DIR *directory = opendir(settings.journal);
	bool written = directory && write_entry(directory);
	size_t end = strlen(message);

	if (!written)
		snprintf(message + end, sizeof(message) - end, "; journal %s: %s",
			 settings.journal, errno == EDQUOT ? "full" : strerror(errno));
	if (directory)
		closedir(directory);
	return written;
}

/* Serve the call that the environment describes; the exit status. */
int main(void)
{
	char *command = getenv(variables[0]), error[sizeof(message) + 64];
	struct iovec output = { error, 0 };
	uint64_t deadline = settings.deadline;
	int fd, code = 4;

	signal(SIGPIPE, SIG_IGN); /* to be told by write(2), */
	signal(SIGXFSZ, SIG_IGN); /* not ended by it */
	if (!command || !*command) {
		command = "";
		failed(4, "CNI_COMMAND is not set: a container runtime starts this program");
	} else {
		if (!strcmp(command, "VERSION") && deadline > VERSION_DEADLINE)
			deadline = VERSION_DEADLINE;
		start_timer(deadline);
		code = read_config();
		if (!code) {
			fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
			code = fd < 0 ? unreachable(strerror(errno)) : ask(fd, &output.iov_len);
			close(fd); /* where standard output was closed, this is its number */
		}
		stop_timer();
	}
	if (!code) {
		output.iov_base = answer + 1;
		output.iov_len -= 1;
		return output.iov_len && !put(1, &output, 1) ? 1 : answer[0];
	}
	if (!strcmp(command, "VERSION")) {
		output = (struct iovec){ version, sizeof(version) - 1 };
		return !put(1, &output, 1);
	}
	/* No timer from here on: what waits for a disk cannot be interrupted. */
	if (code == 11 && !strcmp(command, "DEL") && journal())
		return 0;
	/* Nothing here needs escaping: cni.install judged the two paths. */
	output.iov_len = snprintf(error, sizeof(error), "{\"cniVersion\":\"1.1.0\",\"code\":%d,"
				  "\"msg\":\"%s\"}", code, message);
	put(1, &output, 1);
	return 1;
}
