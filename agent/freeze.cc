#include "agent/freeze.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <sstream>

#include "agent/text_file.h"

namespace tidemark::agent {
namespace {

constexpr char kRecordName[] = "frozen";
constexpr std::size_t kPlacesMax = 128;

// To the watchdog: a letter and the number of a place.
constexpr char kIntent = 'I';     // is about to be frozen
constexpr char kFrozen = 'F';     // was frozen
constexpr char kNotFrozen = 'N';  // could not be
constexpr char kDone = 'D';       // the agent thaws itself: end
// From it.
constexpr char kReady = 'R';
constexpr char kThawing = 'W';  // said before the first thaw

// The watchdog. Runs in a forked child of a process with threads: system calls only, no memory is allocated.
[[noreturn]] void watch(int commands, int reports, const int* folders, std::size_t count,
                        std::chrono::milliseconds limit) {
  for (int signal_number = 1; signal_number < NSIG; ++signal_number) ::signal(signal_number, SIG_IGN);
  ::setsid();
  char last_word[kPlacesMax] = {};
  bool clock_runs = false;
  timespec deadline{};
  (void)!::write(reports, &kReady, 1);
  while (true) {
    int wait_ms = -1;
    if (clock_runs) {
      timespec now{};
      ::clock_gettime(CLOCK_MONOTONIC, &now);
      const std::int64_t left = (deadline.tv_sec - now.tv_sec) * 1000 + (deadline.tv_nsec - now.tv_nsec) / 1'000'000;
      wait_ms = left > 0 ? static_cast<int>(left) : 0;
    }
    pollfd ready{commands, POLLIN, 0};
    const int n = ::poll(&ready, 1, wait_ms);
    if (n < 0 && errno == EINTR) continue;
    char message[2];
    if (n > 0 && ::read(commands, message, 2) == 2) {
      const auto place = static_cast<unsigned char>(message[1]);
      if (message[0] == kDone) ::_exit(0);
      if (message[0] == kIntent && !clock_runs) {
        clock_runs = true;
        ::clock_gettime(CLOCK_MONOTONIC, &deadline);
        deadline.tv_sec += limit.count() / 1000;
        deadline.tv_nsec += (limit.count() % 1000) * 1'000'000;
      }
      if (place < count) last_word[place] = message[0];
      continue;
    }
    // Time is up, or the agent is gone. What is below thaws first. An intent without a result comes last: the agent is
    // inside that call, maybe because of the others, and to thaw waits for it.
    (void)!::write(reports, &kThawing, 1);
    for (const char word : {kFrozen, kIntent}) {
      for (std::size_t i = 0; i < count; ++i) {
        if (last_word[i] == word) ::ioctl(folders[i], FITHAW, 0);
      }
    }
    ::_exit(1);
  }
}

bool lies_on(const struct stat& what, const struct stat& place) { return what.st_dev == place.st_dev; }

}  // namespace

Result<std::unique_ptr<Freeze>> Freeze::start(const std::vector<std::string>& mountpoints,
                                              std::chrono::milliseconds limit, const std::filesystem::path& state_dir) {
  if (mountpoints.empty()) return fail(Code::invalid_argument, "freeze", "no file system to freeze");
  if (mountpoints.size() > kPlacesMax) {
    return fail(Code::unsupported, "freeze", fmt::format("more than {} file systems", kPlacesMax),
                "protect fewer disks per machine");
  }
  struct stat state_status{}, log_status{};
  if (::stat(state_dir.c_str(), &state_status) != 0) return fail_errno(errno, state_dir.string(), "look at");
  const bool log_is_file = ::fstat(STDERR_FILENO, &log_status) == 0 && S_ISREG(log_status.st_mode);

  std::unique_ptr<Freeze> freeze(new Freeze);
  std::string record;
  for (const std::string& mountpoint : mountpoints) {
    FileDescriptor folder(::open(mountpoint.c_str(), O_RDONLY | O_CLOEXEC));
    if (!folder) return fail_errno(errno, mountpoint, "open the mount point to freeze");
    struct stat status{};
    if (::fstat(folder.get(), &status) != 0) return fail_errno(errno, mountpoint, "look at");
    if (lies_on(state_status, status)) {
      return fail(Code::permission_denied, state_dir.string(),
                  "lies on " + mountpoint + ", which would have to be frozen",
                  "put the state directory on a file system that is not protected (--state-dir)");
    }
    if (log_is_file && lies_on(log_status, status)) {
      return fail(Code::permission_denied, mountpoint, "the agent's log is written there",
                  "log to the journal or to another file system");
    }
    // What is dirty is written before, so that the freeze itself is short.
    (void)::syncfs(folder.get());
    record += mountpoint + '\n';
    freeze->places_.push_back({mountpoint, std::move(folder), false});
  }
  freeze->record_ = state_dir / kRecordName;
  TIDEMARK_TRY(write_file_atomically(freeze->record_, record, 0600));
  TIDEMARK_TRY(freeze->start_watchdog(limit));
  if (auto frozen = freeze->freeze_all(); !frozen) {
    (void)freeze->thaw();  // the first error is the one to tell; the record stays when thawing failed too
    return std::unexpected(std::move(frozen).error());
  }
  if (!freeze->intact()) {
    (void)freeze->thaw();
    return fail(Code::timed_out, mountpoints.front(), fmt::format("freezing took longer than {} ms", limit.count()),
                "raise freeze_limit_s, or lower the write load");
  }
  return freeze;
}

Status Freeze::start_watchdog(std::chrono::milliseconds limit) {
  int commands[2], reports[2];
  // A socket where the agent writes: a pipe would raise SIGPIPE when the watchdog is gone.
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, commands) != 0)
    return fail_errno(errno, "watchdog", "make a socket");
  FileDescriptor command_end(commands[0]);
  to_watchdog_.reset(commands[1]);
  if (::pipe2(reports, O_CLOEXEC) != 0) return fail_errno(errno, "watchdog", "make a pipe");
  from_watchdog_.reset(reports[0]);
  FileDescriptor report_end(reports[1]);
  int folders[kPlacesMax];
  for (std::size_t i = 0; i < places_.size(); ++i) folders[i] = places_[i].folder.get();

  watchdog_ = ::fork();
  if (watchdog_ < 0) return fail_errno(errno, "watchdog", "start a process");
  if (watchdog_ == 0) {
    // Keeps the folders and its two pipe ends only: no lock, lease or connection of the agent lives on in it.
    int keep[kPlacesMax + 2];
    std::size_t count = 0;
    keep[count++] = command_end.get();
    keep[count++] = report_end.get();
    for (std::size_t i = 0; i < places_.size(); ++i) keep[count++] = folders[i];
    std::sort(keep, keep + count);
    unsigned next = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto fd = static_cast<unsigned>(keep[i]);
      if (fd > next) ::syscall(SYS_close_range, next, fd - 1, 0);
      next = fd + 1;
    }
    ::syscall(SYS_close_range, next, ~0U, 0);
    watch(command_end.get(), report_end.get(), folders, places_.size(), limit);
  }
  command_end.reset();
  report_end.reset();
  char ready = 0;
  pollfd waiting{from_watchdog_.get(), POLLIN, 0};
  while (::poll(&waiting, 1, 5000) < 0 && errno == EINTR) {
  }
  if (::read(from_watchdog_.get(), &ready, 1) != 1 || ready != kReady) {
    return fail(Code::internal, "watchdog", "it did not start, nothing was frozen");
  }
  return {};
}

void Freeze::tell(char what, std::size_t place) {
  const char message[2] = {what, static_cast<char>(static_cast<unsigned char>(place))};
  if (::send(to_watchdog_.get(), message, 2, MSG_NOSIGNAL) != 2) broken_ = true;  // it is gone
}

Status Freeze::freeze_all() {
  for (std::size_t i = places_.size(); i-- > 0;) {
    Place& place = places_[i];
    tell(kIntent, i);
    if (!intact())
      return fail(Code::internal, place.mountpoint, "the watchdog of the freeze ended", "look for what killed it");
    if (::ioctl(place.folder.get(), FIFREEZE, 0) != 0) {
      const int error_number = errno;
      tell(kNotFrozen, i);
      if (error_number == EBUSY)
        return fail(Code::busy, place.mountpoint, "somebody else has frozen it", "thaw it: fsfreeze -u");
      if (error_number == EOPNOTSUPP) {
        return fail(Code::unsupported, place.mountpoint, "its file system cannot be frozen",
                    "unmount it for a sync, or take its disk off the list");
      }
      return fail_errno(error_number, place.mountpoint, "freeze");
    }
    place.frozen = true;
    tell(kFrozen, i);
  }
  return {};
}

bool Freeze::intact() {
  if (broken_ || done_) return false;
  pollfd news{from_watchdog_.get(), POLLIN, 0};
  if (::poll(&news, 1, 0) == 0) return true;
  broken_ = true;  // it said that it thaws, or it is gone: then nobody guards the freeze, so it ends here
  (void)thaw_own();
  return false;
}

Status Freeze::thaw_own() {
  Status result;
  for (Place& place : places_) {  // in the reverse order of freezing
    if (!place.frozen) continue;
    if (::ioctl(place.folder.get(), FITHAW, 0) != 0 && errno != EINVAL) {  // EINVAL: not frozen any more
      result = fail_errno(errno, place.mountpoint, "thaw");
      continue;
    }
    place.frozen = false;
  }
  return result;
}

Result<bool> Freeze::thaw() {
  if (done_) return !broken_;
  const bool was_intact = intact();
  done_ = true;
  Status thawed = thaw_own();
  // Only now may the watchdog go: had this process died within thaw_own(), it would have finished it.
  if (thawed) tell(kDone, 0);
  to_watchdog_.reset();
  if (watchdog_ > 0) {
    int status = 0;
    while (::waitpid(watchdog_, &status, 0) < 0 && errno == EINTR) {
    }
  }
  if (!thawed) return std::unexpected(std::move(thawed).error());
  if (::unlink(record_.c_str()) != 0 && errno != ENOENT) return fail_errno(errno, record_.string(), "remove");
  return was_intact;
}

Freeze::~Freeze() { (void)thaw(); }  // a failure leaves the record, and the watchdog has tried as well

Result<std::vector<std::string>> thaw_leftovers(const std::filesystem::path& state_dir) {
  const std::filesystem::path record = state_dir / kRecordName;
  const auto text = read_text_file(record);
  if (!text && text.error().code == Code::not_found) return std::vector<std::string>{};
  if (!text) return std::unexpected(text.error());
  std::vector<std::string> thawed;
  std::istringstream lines(*text);
  for (std::string mountpoint; std::getline(lines, mountpoint);) {
    const FileDescriptor folder(::open(mountpoint.c_str(), O_RDONLY | O_CLOEXEC));
    if (folder && ::ioctl(folder.get(), FITHAW, 0) == 0) thawed.push_back(mountpoint);
  }
  if (::unlink(record.c_str()) != 0) return fail_errno(errno, record.string(), "remove");
  return thawed;
}

}  // namespace tidemark::agent
