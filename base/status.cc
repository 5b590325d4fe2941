#include "base/status.h"

#include <cerrno>
#include <system_error>

namespace tidemark {

std::string_view to_string(Code code) {
  switch (code) {
    case Code::ok: return "ok";
    case Code::invalid_argument: return "invalid-argument";
    case Code::not_found: return "not-found";
    case Code::already_exists: return "already-exists";
    case Code::permission_denied: return "permission-denied";
    case Code::unauthenticated: return "unauthenticated";
    case Code::protocol: return "protocol";
    case Code::unsupported: return "unsupported";
    case Code::corrupt: return "corrupt";
    case Code::io: return "io";
    case Code::no_space: return "no-space";
    case Code::busy: return "busy";
    case Code::unavailable: return "unavailable";
    case Code::timed_out: return "timed-out";
    case Code::cancelled: return "cancelled";
    case Code::quarantined: return "quarantined";
    case Code::history_diverged: return "history-diverged";
    case Code::internal: return "internal";
  }
  return "unknown";  // a peer of the future may send a number that is not listed here
}

std::string Error::message() const {
  std::string text;
  if (!object.empty()) text = object + ": ";
  text += what.empty() ? std::string(to_string(code)) : what;
  if (!remedy.empty()) text += " (" + remedy + ")";
  return text;
}

std::unexpected<Error> fail_errno(int error_number, std::string object, std::string_view doing) {
  Code code = Code::io;
  std::string remedy;
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
      code = Code::no_space;
      remedy = "free space on its file system or raise the quota";
      break;
    case ENOENT:
    case ENODEV:
    case ENXIO: code = Code::not_found; break;
    case EACCES:
    case EPERM: code = Code::permission_denied; break;
    case EEXIST: code = Code::already_exists; break;
    case EBUSY: code = Code::busy; break;
    default: break;
  }
  const std::string reason = std::error_code(error_number, std::generic_category()).message();
  return fail(code, std::move(object), "cannot " + std::string(doing) + ": " + reason, std::move(remedy));
}

}  // namespace tidemark
