// The handler in Go: guesses the name of a company that the directory does not know. The guide
// docs/guides/error-handlers.md explains it.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"log"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	recoupv1 "example.com/contacts/gen/recoup/v1"
)

// The part of the task's input that this handler reads.
type input struct {
	Error struct {
		Type    string
		Details struct{ Domain string }
	}
}

type profile struct {
	Company string `json:"company"`
	Source  string `json:"source"`
}

// Domains at which many companies and persons have their mail.
var providers = map[string]bool{"mail.example": true}

// The work itself: returns a profile, or an error.
func guess(task input) (*profile, *recoupv1.Error) {
	domain := task.Error.Details.Domain
	if providers[domain] {
		return nil, &recoupv1.Error{
			Type:         "guess.impossible",
			Message:      domain + " is a mail provider",
			NonRetryable: proto.Bool(true),
		}
	}
	name, _, _ := strings.Cut(domain, ".")
	if name == "" {
		return nil, &recoupv1.Error{
			Type:         "guess.no_domain",
			Message:      "the details of " + task.Error.Type + " have no domain",
			NonRetryable: proto.Bool(true),
		}
	}
	return &profile{Company: strings.ToUpper(name[:1]) + name[1:], Source: "guess"}, nil
}

func main() {
	address := flag.String("address", "127.0.0.1:7430", "host:port of the server")
	flag.Parse()
	connection, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	worker := recoupv1.NewWorkerServiceClient(connection)
	session := rand.Text()
	for {
		// The poll waits for up to 60 s on the server, so its deadline is a little longer.
		ctx, cancel := context.WithTimeout(context.Background(), 65*time.Second)
		polled, err := worker.PollTasks(ctx, &recoupv1.PollTasksRequest{
			Queue:     "guesses",
			Worker:    "guess-go",
			TaskTypes: []string{"profile.guess"},
			Wait:      durationpb.New(60 * time.Second),
			SessionId: session,
			// This worker polls only when it has no task. A task that was lost on its way here is then handed out again.
			Held: &recoupv1.HeldTasks{},
		})
		cancel()
		if err != nil {
			log.Print(err)
			time.Sleep(time.Second)
			continue
		}
		for _, task := range polled.Tasks {
			perform(worker, task)
		}
	}
}

func perform(worker recoupv1.WorkerServiceClient, task *recoupv1.Task) {
	var read input
	var output *profile
	var failure *recoupv1.Error
	if err := json.Unmarshal([]byte(task.Input.GetJson()), &read); err != nil {
		failure = &recoupv1.Error{Type: "guess.input_invalid", Message: err.Error(), NonRetryable: proto.Bool(true)}
	} else {
		output, failure = guess(read)
	}
	if failure != nil {
		log.Printf("%s attempt %d: %s", task.StepPath, task.Attempt, failure.Message)
		report(func(ctx context.Context) error {
			_, err := worker.FailTask(ctx, &recoupv1.FailTaskRequest{TaskToken: task.TaskToken, Error: failure})
			return err
		})
		return
	}
	text, err := json.Marshal(output)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("%s attempt %d: %s", task.StepPath, task.Attempt, text)
	payload := &recoupv1.Payload{Content: &recoupv1.Payload_Json{Json: string(text)}}
	report(func(ctx context.Context) error {
		_, err := worker.CompleteTask(ctx, &recoupv1.CompleteTaskRequest{TaskToken: task.TaskToken, Output: payload})
		return err
	})
}

// Sends a result until the server has answered. Sending it twice does no harm.
func report(send func(context.Context) error) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := send(ctx)
		cancel()
		switch status.Code(err) {
		case codes.OK:
			return
		case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Aborted, codes.Canceled,
			codes.Internal, codes.Unknown:
			log.Print(err)
			time.Sleep(time.Second)
		default:
			// Such as ATTEMPT_CLOSED: a timeout came first.
			log.Print(err)
			return
		}
	}
}
