/* Tries one way out of a step's sandbox: "probe NAME". Exit 0 means that the kernel let it pass,
 * 1 that it refused (the errno's name is printed). Linked statically: it runs in an empty image. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long handle(void) {
	struct { unsigned int bytes; int type; unsigned char data[128]; } h = { .bytes = 128 };
	int id;
	/* Any handle will do: inode 2 is the root of most disks. */
	if (syscall(SYS_name_to_handle_at, AT_FDCWD, "/", &h, &id, 0) != 0) { h.bytes = 8; h.type = 1; h.data[0] = 2; }
	return syscall(SYS_open_by_handle_at, AT_FDCWD, &h, O_RDONLY);
}

static long other_memory(void) {
	char byte;
	struct iovec here = { &byte, 1 }, there = { (void *)0x400000, 1 };
	return process_vm_readv(1, &here, 1, &there, 1, 0);
}

/* The old trick: a descriptor from before the chroot, then up as far as it goes. */
static long chroot_escape(void) {
	int fd = open("/", O_RDONLY);
	mkdir("/jail", 0755);
	if (fd < 0 || chroot("/jail") || fchdir(fd)) return -1;
	for (int i = 0; i < 64; i++) if (chdir("..")) return -1;
	if (chroot(".")) return -1;
	return access(getenv("OUTSIDE"), F_OK);
}

static long own_namespace(const char *path, int kind) {
	int fd = open(path, O_RDONLY);
	return fd < 0 ? -1 : setns(fd, kind);
}

#ifdef __x86_64__
static long int80(long nr, long a) {
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(0), "d"(0), "S"(0), "D"(0) : "memory", "r8", "r9", "r10", "r11");
	if (r < 0) { errno = -r; return -1; }
	return r;
}
#endif

static long attempt(const char *n) {
	char buf[256] = { 0 };
#define IS(x) (strcmp(n, x) == 0)
	if (IS("getpid")) return syscall(SYS_getpid);
	if (IS("effective_root")) return geteuid() == 0 ? 0 : (errno = EPERM, -1);
	if (IS("chroot_escape")) return chroot_escape();
	if (IS("mount")) return syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, 0);
	if (IS("umount")) return syscall(SYS_umount2, "/proc/sys", 2);
	if (IS("fsopen")) return syscall(430, "tmpfs", 0);
	if (IS("open_tree")) return syscall(428, AT_FDCWD, "/", 1);
	if (IS("mount_setattr")) return syscall(442, AT_FDCWD, "/sys", 0, buf, 32);
	if (IS("pivot_root")) return syscall(SYS_pivot_root, "/", "/");
	if (IS("unshare_user")) return unshare(CLONE_NEWUSER);
	if (IS("unshare_mount")) return unshare(CLONE_NEWNS);
	if (IS("clone_user")) return syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0);
	if (IS("clone3")) return syscall(435, buf, 88);
	if (IS("setns_pid1")) return own_namespace("/proc/1/ns/mnt", 0);
	if (IS("setns_self")) return own_namespace("/proc/self/ns/net", CLONE_NEWNET);
	if (IS("keyctl")) return syscall(SYS_keyctl, 0, -3, 1);
	if (IS("add_key")) return syscall(SYS_add_key, "user", "x", "y", 1, -3);
	if (IS("request_key")) return syscall(SYS_request_key, "user", "x", 0, -3);
	if (IS("bpf")) return syscall(SYS_bpf, 0, buf, 72);
	if (IS("perf_event_open")) return syscall(SYS_perf_event_open, buf, 0, -1, -1, 0);
	if (IS("userfaultfd")) return syscall(SYS_userfaultfd, 1);
	if (IS("kexec_load")) return syscall(SYS_kexec_load, 0, 0, 0, 0);
	if (IS("init_module")) return syscall(SYS_init_module, buf, sizeof buf, "");
	if (IS("finit_module")) return syscall(SYS_finit_module, open("/bin/probe", O_RDONLY), "", 0);
	if (IS("delete_module")) return syscall(SYS_delete_module, "dummy", 0);
	if (IS("open_by_handle_at")) return handle();
	if (IS("ptrace_pid1")) return ptrace(PTRACE_ATTACH, 1, 0, 0);
	if (IS("process_vm_readv")) return other_memory();
	if (IS("io_uring_setup")) return syscall(425, 8, buf);
	if (IS("settimeofday")) return syscall(SYS_settimeofday, buf, 0);
	if (IS("clock_settime")) return syscall(SYS_clock_settime, 0, buf);
	if (IS("reboot")) return syscall(SYS_reboot, 0xfee1dead, 672274793, 0, 0);
	if (IS("swapon")) return syscall(SYS_swapon, "/bin/probe", 0);
	if (IS("acct")) return syscall(SYS_acct, 0);
	if (IS("quotactl")) return syscall(SYS_quotactl, 0, 0, 0, 0);
	if (IS("syslog")) return syscall(SYS_syslog, 3, buf, sizeof buf);
	if (IS("sethostname")) return syscall(SYS_sethostname, "out", 3);
	if (IS("vsock")) return socket(40, SOCK_STREAM, 0);
	if (IS("personality")) return syscall(SYS_personality, 0x0400000);
#ifdef __x86_64__
	if (IS("iopl")) return syscall(SYS_iopl, 3);
	if (IS("ioperm")) return syscall(SYS_ioperm, 0x70, 1, 1);
	if (IS("mount_i386")) return int80(21, 0);
	if (IS("x32_mount")) return syscall(0x40000000 + 165, "none", "/tmp", "tmpfs", 0, 0);
#endif
	fprintf(stderr, "no such attempt: %s\n", n);
	exit(3);
}

int main(int argc, char **argv) {
	if (argc != 2) return 3;
	long result = attempt(argv[1]);
	if (result >= 0) { printf("%s: passed\n", argv[1]); return 0; }
	printf("%s: %s\n", argv[1], strerrorname_np(errno));
	return 1;
}
