// Restored frames from a deblurd daemon. C++17 on POSIX, with libzmq 4.3, cppzmq and nlohmann-json.
//
//     deblurd::Subscriber subscriber("tcp://127.0.0.1:5555", {"porch"});
//     for (;;) {
//         const auto frame = subscriber.receive();
//         show(frame->pixels, frame->width, frame->height);
//     }
//
// Knows when to ask the daemon for what; what a message holds is in deblurd_frame.hpp. A Subscriber has no thread of
// its own and is used by one at a time; a Frame may go anywhere, and keeps its pixels as they are.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#include <zmq.hpp>

#include "deblurd_frame.hpp"

namespace deblurd {

/// The daemon does not let this client in; the text says why. Another `receive` tries again.
struct RefusedError : std::runtime_error { using runtime_error::runtime_error; };
/// The daemon was there, and answers no more.
struct LostError : std::runtime_error { using runtime_error::runtime_error; };

enum class Mode {
    newest,  ///< the newest frame of each stream, each stream in turn, whatever was missed meanwhile
    paced,   ///< asks for each frame: a receiver that keeps up gets all, and nothing travels in vain
    shared,  ///< the same, with frames read where the daemon wrote them; `paced` where that cannot be
};

enum class State { connecting, live, lost };

/// CURVE keys in Z85: this client's own, and the daemon's public one.
struct Keys {
    std::string public_key, secret_key, server_key;

    /// From `NAME.key_secret` and the daemon's `NAME.key`, as `deblurd keys new` makes them.
    static Keys load(const std::string& secret_file, const std::string& server_file) {
        return {read(secret_file, "public-key"), read(secret_file, "secret-key"), read(server_file, "public-key")};
    }

  private:
    static std::string read(const std::string& path, const std::string& name) {
        std::ifstream file(path);
        if (!file) throw std::invalid_argument(path + ": cannot be read");
        for (std::string word, equals, key; file >> word;)
            if (word == name && file >> equals >> key && key.size() == 42) return key.substr(1, 40);
        throw std::invalid_argument(path + ": must hold a " + name + " of 40 characters in quotes");
    }
};

struct Options {
    Mode mode = Mode::newest;
    std::optional<Keys> keys;      ///< where the daemon asks for them
    std::string control;           ///< the daemon's control endpoint; empty: the one that belongs to the endpoint
    bool throw_when_lost = false;  ///< `receive` throws LostError, instead of waiting for the daemon to come back
};

class Subscriber {
  public:
    /// `endpoint`: e.g. tcp://127.0.0.1:5555; the daemon may start later. `streams`: none for all that it has.
    explicit Subscriber(std::string endpoint, std::vector<std::string> streams = {}, Options options = {})
        : endpoint_(std::move(endpoint)), streams_(std::move(streams)), options_(std::move(options)) {
        if (options_.control.empty()) options_.control = control_endpoint(endpoint_);
        open();
    }

    /// The next frame, or nothing when none comes within `timeout`; without one, waits for ever.
    std::optional<Frame> receive(std::optional<std::chrono::milliseconds> timeout = {}) try {
        const auto deadline = timeout ? Clock::now() + *timeout : Clock::time_point::max();
        for (;;) {
            keep_in_touch();
            if (auto frame = take()) return frame;
            if (options_.throw_when_lost && state_ == State::lost)
                throw LostError(endpoint_ + ": the daemon answers no more");
            if (options_.mode != Mode::newest) ask();
            if (Clock::now() >= deadline) return {};
            wait_until(std::min({deadline, ping_at_, reopen_at_}));
        }
    } catch (const json::exception& error) {
        throw WireError(std::string("a field is missing or of the wrong kind: ") + error.what());
    }

    /// As of the last `receive`; a daemon is `lost` when it has not answered three pings, within 1.6 s.
    State state() const { return state_; }

    /// Changes when the daemon restarts; empty before it first answers.
    const std::string& run_id() const { return run_id_; }

  private:
    static constexpr std::chrono::milliseconds ping_every{400}, reopen_after{1000}, answer_within{6000};
    static constexpr int pings_to_lose = 3;
    static constexpr std::size_t max_request = 4096;

    static std::string control_endpoint(const std::string& endpoint) {
        if (endpoint.rfind("ipc://", 0) == 0) return endpoint + ".control";
        const auto colon = endpoint.rfind(':');
        const int port = colon == endpoint.npos ? 0 : std::atoi(endpoint.c_str() + colon + 1);
        if (endpoint.rfind("tcp://", 0) != 0 || port < 1 || port > 65534)
            throw std::invalid_argument("endpoint must be tcp://HOST:PORT or ipc://PATH, got " + endpoint);
        return endpoint.substr(0, colon + 1) + std::to_string(port + 1);
    }

    zmq::socket_t make_socket(zmq::socket_type type) {
        namespace opt = zmq::sockopt;
        zmq::socket_t socket(context_, type);
        socket.set(opt::linger, 0);
        socket.set(opt::ipv6, endpoint_.rfind("tcp://[", 0) == 0);
        socket.set(opt::tcp_keepalive, 1);  // no ZeroMQ heartbeats: a long frame counts as a dead peer
        socket.set(opt::tcp_keepalive_idle, 2);
        socket.set(opt::tcp_keepalive_intvl, 1);
        socket.set(opt::tcp_keepalive_cnt, 3);
        if (options_.keys) {
            socket.set(opt::curve_serverkey, options_.keys->server_key);
            socket.set(opt::curve_publickey, options_.keys->public_key);
            socket.set(opt::curve_secretkey, options_.keys->secret_key);
        }
        return socket;
    }

    /// Connect everything anew.
    void open() {
        reopen_at_ = Clock::time_point::max();
        ping_at_ = Clock::now();
        broken_off_ = 0;
        receivers_.clear();
        monitors_.clear();
        pulse_ = make_socket(zmq::socket_type::dealer);  // of its own for pings: never behind a frame
        pulse_.set(zmq::sockopt::immediate, 1);          // none is kept for a daemon that is not there
        monitor(pulse_, ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                            ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL);
        pulse_.connect(options_.control);
        if (options_.mode == Mode::newest) return listen(streams_);
        asked_ = false;
        receivers_.push_back(make_socket(zmq::socket_type::dealer));
        receivers_.back().connect(options_.control);
    }

    /// ZeroMQ keeps the newest message of a whole socket: so, one socket for each stream.
    void listen(const std::vector<std::string>& streams) {
        receivers_.clear();
        monitors_.resize(1);
        for (const auto& stream : streams) {
            auto& socket = receivers_.emplace_back(make_socket(zmq::socket_type::sub));
            socket.set(zmq::sockopt::conflate, 1);
            socket.set(zmq::sockopt::subscribe, stream + '\0');  // ZeroMQ matches prefixes
            monitor(socket, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
            socket.connect(endpoint_);
        }
    }

    /// Hear what the daemon said since, whatever time has passed, and only then judge it by its silence.
    void keep_in_touch() {
        if (Clock::now() >= reopen_at_) open();
        for (auto& each : monitors_) look_at_handshakes(each);
        zmq::message_t message;
        while (pulse_.recv(message, zmq::recv_flags::dontwait)) {
            unanswered_ = 0;
            const auto answer = detail::unpack(std::move(message)).header;
            const auto& kind = answer.at("kind");
            if (kind == "welcome") greet(answer);
            if (kind == "refused") throw RefusedError(endpoint_ + ": " + answer.at("reason").get<std::string>());
            if (kind == "pong" && answer.at("run_id") != run_id_) send(pulse_, {{"kind", "hello"}});
        }
        if (Clock::now() < ping_at_) return;
        if (state_ == State::live && unanswered_ >= pings_to_lose) state_ = State::lost;
        send(pulse_, {{"kind", state_ == State::live ? "ping" : "hello"}});
        ++unanswered_;
        ping_at_ = Clock::now() + ping_every;
    }

    void greet(const json& welcome) {
        const bool another = welcome.at("run_id") != run_id_;
        if (another) loans_ = std::make_shared<detail::Loans>();
        if (another || state_ != State::live) asked_ = false;  // it has forgotten
        run_id_ = welcome.at("run_id");
        state_ = State::live;
        if (options_.mode == Mode::shared) loans_->offer(welcome.at("shared"));
        if (options_.mode == Mode::newest && streams_.empty()) listen(welcome.at("streams"));
    }

    /// Where a handshake fails, ZeroMQ tells nobody but the monitor, and does not always try again.
    void monitor(zmq::socket_t& socket, int events) {
        const auto address = "inproc://monitor-" + std::to_string(++monitored_);
        if (zmq_socket_monitor(socket.handle(), address.c_str(), events) != 0) throw zmq::error_t();
        monitors_.emplace_back(context_, zmq::socket_type::pair).connect(address);
    }

    void look_at_handshakes(zmq::socket_t& events) {
        zmq::message_t event, address;
        while (events.recv(event, zmq::recv_flags::dontwait) && events.recv(address)) {
            std::uint16_t kind;
            std::uint32_t value;
            std::memcpy(&kind, event.data(), sizeof kind);
            std::memcpy(&value, event.data<char>() + sizeof kind, sizeof value);
            const bool keys = options_.keys.has_value(), hung_up = value == EPIPE || value == ECONNRESET;
            if (kind == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) broken_off_ = 0;
            if (kind == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
                refuse(value == 500 ? "it has as many clients as it takes" : "this client's key is not allowed");
            if (kind == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
                refuse(value != ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH ? "it is no deblurd"
                       : keys ? "it has no keys, this client has" : "it wants keys, this client has none");
            // The same comes from a daemon that ends just now: so, twice.
            if (kind == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL && hung_up && ++broken_off_ == 2)
                refuse(keys ? "its key is another, or it has none" : "it wants keys, this client has none");
        }
    }

    [[noreturn]] void refuse(const std::string& why) {
        reopen_at_ = Clock::now() + reopen_after;
        throw RefusedError(endpoint_ + ": " + why);
    }

    std::optional<Frame> take() {
        zmq::message_t message;
        for (std::size_t count = 0; count < receivers_.size(); ++count) {
            turn_ = (turn_ + 1) % receivers_.size();
            if (!receivers_[turn_].recv(message, zmq::recv_flags::dontwait)) continue;
            asked_ = false;
            auto received = detail::unpack(std::move(message));
            const json& header = received.header;
            if (header.at("kind") == "refused")
                throw RefusedError(endpoint_ + ": " + header.at("reason").get<std::string>());
            if (header.at("kind") != "frame") continue;
            if (header.at("encoding") == "shared") {
                if (header.at("run_id") != run_id_) continue;
                if (!loans_->borrow(received)) {  // as bytes, until a new welcome proves that it can be read
                    loans_->readable = false;
                    send(pulse_, {{"kind", "hello"}});
                    continue;
                }
            }
            if (auto frame = detail::to_frame(std::move(received))) return frame;
        }
        return {};
    }

    /// Ask for the newest frame of a stream whose turn it is, unless the last request is still to be answered.
    void ask() {
        if (state_ != State::live || (asked_ && Clock::now() < answer_at_)) return;
        const json streams = streams_.empty() ? json() : json(streams_);
        send(receivers_[0], {{"kind", "next"}, {"streams", streams}, {"shared", loans_->readable},
                             {"release", loans_->given_back()}});
        asked_ = true;
        answer_at_ = Clock::now() + answer_within;  // else the connection broke: a daemon answers within 5 s
    }

    static void send(zmq::socket_t& socket, json request) {
        request["version"] = wire_version;
        const auto text = request.dump();
        if (text.size() > max_request) throw std::invalid_argument("the names of the streams are too long together");
        (void)socket.send(zmq::buffer(text), zmq::send_flags::dontwait);
    }

    void wait_until(Clock::time_point time) {
        std::vector<zmq::pollitem_t> items{{pulse_, 0, ZMQ_POLLIN, 0}};
        for (auto& socket : monitors_) items.push_back({socket, 0, ZMQ_POLLIN, 0});
        for (auto& socket : receivers_) items.push_back({socket, 0, ZMQ_POLLIN, 0});
        try {
            const auto left = std::max(Clock::duration::zero(), time - Clock::now());
            zmq::poll(items, std::chrono::ceil<std::chrono::milliseconds>(left));
        } catch (const zmq::error_t& error) {
            if (error.num() != EINTR) throw;
        }
    }

    std::string endpoint_, run_id_;
    std::vector<std::string> streams_;
    Options options_;
    State state_ = State::connecting;
    int unanswered_ = 0, broken_off_ = 0;
    Clock::time_point ping_at_, answer_at_, reopen_at_;
    bool asked_ = false;
    std::size_t turn_ = 0, monitored_ = 0;
    std::shared_ptr<detail::Loans> loans_ = std::make_shared<detail::Loans>();
    zmq::context_t context_;  // ends after its sockets
    zmq::socket_t pulse_;
    std::vector<zmq::socket_t> receivers_, monitors_;
};

}  // namespace deblurd
